"""NaN on one of two processes with a fused optimizer: both leave the step out on the device and learn of it alike."""

import csv
import json
import os
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from test_not_finite import BAD, CONFIG, fit

from siglightning.distributed.local import run_ranks
from siglightning.tasks.finite import PATIENCE

pytestmark = pytest.mark.slow
SGD = "{class_path: torch.optim.SGD, init_args: {lr: 0.005, momentum: 0.9, weight_decay: 0.0}}"
ADAMW = "{class_path: torch.optim.AdamW, init_args: {lr: 0.005, weight_decay: 0.1, fused: true}}"
# A checkpoint right after the first bad step settles what became of it, on both.
FUSED = CONFIG.replace(SGD, ADAMW) + f"checkpoint: {{every_n_steps: {BAD[0] + 1}}}\n"


def on_this_rank(folder):
    rank = dist.get_rank()
    rank_zero_only.rank = rank  # read by Lightning when it was imported, before this process knew
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    return fit(folder, "twice", 2, 1, BAD[1], 8), fit(folder, "for ever", 2, 1, 10**6, 40)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    assert SGD in CONFIG
    folder = tmp_path_factory.mktemp("nan")
    (folder / "small.yaml").write_text(FUSED)
    return folder


@pytest.fixture(scope="module")
def codes(folder):
    return run_ranks(2, on_this_rank, str(folder))


def test_the_step_is_left_out_on_both(folder, codes):
    """The reference drops the gradients of the same steps in one process, by hand."""
    assert [code[0] for code in codes] == [0, 0]
    assert fit(folder, "dropped", 1, -1, BAD[1], 8) == 0
    saved = {
        (name, step): torch.load(Path(folder, name, "checkpoints", f"step-{step:08d}.ckpt"), weights_only=True)
        for name in ("twice", "dropped")
        for step in (BAD[0] + 1, 8)
    }
    for key, value in saved["dropped", 8]["state_dict"].items():
        # fp64: gradients are 1e-14 off, which AdamW divides by as little as its eps of 1e-8; a step is up to 5e-3
        torch.testing.assert_close(saved["twice", 8]["state_dict"][key], value, rtol=0, atol=1e-6)
    assert [saved["twice", step]["skipped_steps"] for step in (BAD[0] + 1, 8)] == [1, 2]
    with (folder / "twice" / "metrics.csv").open() as file:
        assert [float(row["train/skipped_steps"]) for row in csv.DictReader(file)] == [0, 0, 0, 0, 1, 2, 2, 2]


def test_after_so_many_in_a_row_both_end_and_name_the_samples(folder, codes):
    assert [code[1] for code in codes] == [3, 3]
    record = json.loads((folder / "for ever" / "exit.json").read_text())
    assert record["status"] == "not finite"
    last = BAD[0] + PATIENCE - 1
    assert f"not finite in {PATIENCE} steps in a row, up to step {last};" in record["message"]
    assert 'rank 1: "' in record["message"]
    assert "rank 0" not in record["message"]
    assert last <= record["global_step"] <= last + 1, "a checkpoint in that place tells at once"
