"""NaN on one of three processes: the step is left out on all of them, and not for ever."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only

from siglightning.cli import main
from siglightning.distributed.local import run_ranks
from siglightning.tasks.finite import PATIENCE

CONFIG = """
model:
  init_args:
    network:
      init_args:
        image_tower: {name: "local:conv", kwargs: {width: 8, depths: [1, 1]}}
        text_tower: {name: "local:text_transformer", kwargs: {width: 16, depth: 1, heads: 2}}
        embed_dim: 16
    optimizer: {class_path: torch.optim.SGD, init_args: {lr: 0.005, momentum: 0.9, weight_decay: 0.0}}
data:
  init_args: {global_batch_size: 12}
trainer:
  precision: 64-true
  limit_val_batches: 0
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
test_after_fit: false
"""
BAD = (3, 4)  # steps, of which each is left out


def fit(folder, name, world_size, rank, last, steps):
    faulty = {"class_path": "faulty.NotANumber", "init_args": {"rank": rank, "first": BAD[0], "last": last}}
    more = {"trainer": {"callbacks": [faulty], "max_steps": steps, "devices": world_size}}
    if world_size > 1:
        more["trainer"]["strategy"] = "ring_ddp"
    shared = ["--config", f"{folder}/small.yaml", f"--config={json.dumps(more)}", "--trust_imports", "faulty"]
    return main(["fit", "--config", "quickstart", *shared, "--run_dir", f"{folder}/{name}"])


def on_this_rank(folder):
    rank = dist.get_rank()
    rank_zero_only.rank = rank  # read by Lightning when it was imported, before this process knew
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    return fit(folder, "twice", 3, 1, BAD[1], 8), fit(folder, "for ever", 3, 2, 10**6, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("nan")
    (folder / "small.yaml").write_text(CONFIG)
    return folder


@pytest.fixture(scope="module")
def codes(folder):
    return run_ranks(3, on_this_rank, str(folder))


def test_the_step_is_left_out_on_all_processes(folder, codes, observe):
    """The reference drops the gradients of the same steps in one process, by hand."""
    assert [code[0] for code in codes] == [0, 0, 0]
    assert fit(folder, "dropped", 1, -1, BAD[1], 8) == 0
    weights = [
        torch.load(Path(folder, name, "checkpoints", "step-00000008.ckpt"), weights_only=True)
        for name in ("twice", "dropped")
    ]
    for key, value in weights[1]["state_dict"].items():
        # fp64: some roundings of weights of order 1
        torch.testing.assert_close(weights[0]["state_dict"][key], value, rtol=0, atol=1e-12)
    assert weights[0]["skipped_steps"] == len(BAD)
    with (folder / "twice" / "metrics.csv").open() as file:
        counted = [float(row["train/skipped_steps"]) for row in csv.DictReader(file)]
    assert counted == [0, 0, 0, 0, 1, 2, 2, 2]  # those of the steps before
    observe(
        "NaN in the gradients of one of three ranks, twice",
        expected="the step is left out on all ranks, training goes on",
        observed="weights of a run without these steps (1e-12, fp64), equal on all ranks; 2 skipped steps counted",
        seconds=None,  # nothing stands still
    )


def test_after_so_many_in_a_row_the_run_ends_and_names_the_samples(folder, codes, observe):
    assert [code[1] for code in codes] == [3, 3, 3]
    record = json.loads((folder / "for ever" / "exit.json").read_text())
    assert record["status"] == "not finite"
    assert record["global_step"] == BAD[0] + PATIENCE - 1
    message = record["message"]
    assert f"not finite in {PATIENCE} steps in a row" in message
    assert [f"rank {rank}: " in message for rank in range(3)] == [False, False, True]
    named = message.partition('rank 2: "')[2].partition('"')[0]
    assert named.partition("/")[0] in ("noto", "fluent_color", "fluent_flat", "clipart"), message
    observe(
        "NaN in the gradients of one of three ranks, for ever",
        expected=f"ends after {PATIENCE} steps with exit code 3 and names the samples",
        observed=f"exit code 3 at step {record['global_step']} on every rank, the samples of rank 2 named",
        seconds=None,  # those of the steps
    )
