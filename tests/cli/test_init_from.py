"""`--init_from` on the command line, on embedded pictograms: stages that follow one another, resuming, refusals."""

import csv
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import yaml
from lightning.pytorch.utilities import rank_zero_only

from siglightning.cli import main
from siglightning.distributed.local import run_ranks

IMAGE = (
    '{name: "timm:vit_tiny_patch16_224", kwargs: {img_size: 32, patch_size: 8, embed_dim: 16, depth: 4, num_heads: 2, '
    "class_token: false, global_pool: map}}"
)
PAIRS = f"""
model:
  class_path: siglightning.tasks.ContrastiveTask
  init_args:
    network:
      class_path: siglightning.models.TwoTower
      init_args:
        image_tower: {IMAGE}
        text_tower: {{name: "local:text_transformer", kwargs: {{width: 16, depth: 1, heads: 2}}}}
        embed_dim: 16
        context_length: 12
        init_bias: auto
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.01, betas: [0.9, 0.95], weight_decay: 0.01}}}}
data:
  class_path: siglightning.data.PictogramDataModule
  init_args: {{global_batch_size: 12, eval_batch_size: 32}}
"""
CLASSES = f"""
model:
  class_path: siglightning.tasks.FineTuneTask
  init_args:
    network: {{class_path: siglightning.models.ImageEncoder, init_args: {{image_tower: {IMAGE}}}}}
    optimizer: {{class_path: torch.optim.AdamW, init_args: {{lr: 0.01}}}}
data:
  class_path: siglightning.data.PictogramDataModule
  init_args: {{global_batch_size: 12, eval_batch_size: 32}}
"""
SHORT = """
trainer:
  accelerator: cpu
  max_steps: 4
  val_check_interval: 2
  check_val_every_n_epoch: null
  limit_val_batches: 1
  num_sanity_val_steps: 0
  log_every_n_steps: 1
  enable_progress_bar: false
test_after_fit: false
"""
NETWORK = "--model.init_args.network.init_args"
LARGER = f"{NETWORK}.image_tower={IMAGE.replace('img_size: 32', 'img_size: 48')}"


@pytest.fixture
def siglightning(tmp_path, monkeypatch, capsys):
    """Call a command with one of the two tasks; gives the exit code and all that is printed."""
    monkeypatch.chdir(tmp_path)
    for name, text in {"pairs": PAIRS, "classes": CLASSES, "short": SHORT}.items():
        (tmp_path / f"{name}.yaml").write_text(text)

    def run(command: str, task: str, *arguments: str) -> tuple[int, str]:
        capsys.readouterr()
        configs = ["--config", f"{task}.yaml", "--config", "short.yaml", "--trust_imports", "cli_examples"]
        code = main([command, *configs, *arguments])
        return code, "".join(capsys.readouterr())

    return run


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    """A finished run."""
    folder = tmp_path_factory.mktemp("first")
    (folder / "all.yaml").write_text(PAIRS + SHORT)
    assert main(["fit", "--config", str(folder / "all.yaml"), "--run_dir", str(folder / "first")]) == 0
    return folder / "first"


def checkpoint(run_dir, name="step-00000004"):
    return torch.load(run_dir / "checkpoints" / f"{name}.ckpt", weights_only=True)


def metrics(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def values(run_dir):
    return [{k: v for k, v in row.items() if k.startswith(("train/", "val/"))} for row in metrics(run_dir)]


def test_the_next_resolution_begins_at_step_zero_and_resumes_from_its_own(siglightning, first, tmp_path):
    shutil.copytree(first, tmp_path / "first")
    first = checkpoint(tmp_path / "first")
    stage = ["--init_from", "first", LARGER, "--model.optimizer.lr=1e-4", "--model.optimizer.weight_decay=0"]
    code, out = siglightning("fit", "pairs", "--run_dir", "whole", *stage)
    assert code == 0, out
    assert "Beginning with the weights of first/checkpoints/step-00000004.ckpt, step 4" in out
    assert "resized: network.image_tower.trunk.pos_embed, 4 x 4 to 6 x 6 patches" in out
    assert f"b = {first['state_dict']['network.bias'].item():.5g}" in out  # learnt, not matched to the batch again
    record = json.loads((tmp_path / "whole" / "init_from.json").read_text())
    assert (record["global_step"], record["left_out"], record["begins_as_built"]) == (4, {}, {})
    assert yaml.safe_load((tmp_path / "whole" / "config.yaml").read_text())["init_from"] == "first"
    whole = checkpoint(tmp_path / "whole")
    assert whole["global_step"] == 4
    assert {int(state["step"]) for state in whole["optimizer_states"][0]["state"].values()} == {4}
    # Four steps of AdamW at 1e-4 move each weight by at most about 4e-4: it is the first run's model still.
    for name, value in first["state_dict"].items():
        if "pos_embed" not in name:
            torch.testing.assert_close(whole["state_dict"][name], value, atol=1e-3, rtol=0)

    crash = "{trainer: {callbacks: [{class_path: cli_examples.Crash, init_args: {step: 3}}]}}"
    assert siglightning("fit", "pairs", "--run_dir", "cut", *stage, "--config", crash)[0] == 1
    shutil.rmtree(tmp_path / "first")  # nobody asks for it again
    code, out = siglightning("fit", "pairs", "--run_dir", "cut", *stage)
    assert code == 0, out
    assert "Resuming cut from step 2" in out
    assert "Beginning with" not in out
    torch.testing.assert_close(checkpoint(tmp_path / "cut")["state_dict"], whole["state_dict"], rtol=0, atol=0)
    assert values(tmp_path / "cut") == values(tmp_path / "whole")


def test_blocks_follow_one_another_from_the_best_weights(siglightning, tmp_path):
    """last_3, then last_6 in small: what is validated before the first step is the best of the run before."""
    few = ["--data.targets=category", "--data.captions=null"]
    code, out = siglightning("fit", "classes", *few, "--run_dir=last_1", "--model.train={last_n: 1}")
    assert code == 0, out
    (best,) = (tmp_path / "last_1" / "checkpoints").glob("best-*.ckpt")
    step = int(best.stem.removeprefix("best-"))
    (row,) = (row for row in metrics(tmp_path / "last_1") if row["val/acc"] and int(row["step"]) + 1 == step)

    more = [*few, "--init_from=last_1", "--model.train={last_n: 2}"]
    code, out = siglightning("validate", "classes", *more, "--run_dir=before", "--resume=never")
    assert code == 0, out
    assert "  taken: image tower (" in out
    assert "  taken: classifier, the same" in out
    (found,) = (row for row in metrics(tmp_path / "before" / "validate") if row["val/loss"])
    assert (found["val/acc"], found["val/loss"]) == (row["val/acc"], row["val/loss"])

    code, out = siglightning("validate", "classes", *more, "--run_dir=last_1")  # a run's own checkpoint has all
    assert code == 0, out
    assert "Beginning with" not in out


MISTAKES = {
    "gone": (
        ["--init_from=gone"],
        "init_from expects a checkpoint file or a directory, got 'gone', which does",
    ),
    "no run": (["--init_from=empty"], "empty is no checkpoint: expected config.json (transformers)"),
    "two": (["--init_from=first", "--ckpt_path=pairs.yaml"], "Give one of them."),
    "patches": (
        ["--init_from=first", LARGER.replace("patch_size: 8", "patch_size: 16")],
        "has patches of 8 pixels, the model of 16: position embeddings can be resized, patches cannot.",
    ),
    "another network": (
        ["--init_from=first", f"{NETWORK}.embed_dim=8"],
        "network.image_projection.weight is [8, 16] in the model and [16, 16] in the checkpoint",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_end_before_training_in_one_line(name, siglightning, first, tmp_path):
    (tmp_path / "first").symlink_to(first)
    (tmp_path / "empty").mkdir()
    before = sorted(tmp_path.rglob("*"))
    arguments, expected = MISTAKES[name]
    code, out = siglightning("fit", "pairs", "--run_dir=second", *arguments)
    assert code == 2, out
    (error,) = (line for line in out.splitlines() if line.startswith("error: "))
    assert expected in error
    assert "Traceback" not in out
    assert sorted(tmp_path.rglob("*")) == before


def continue_on(world_size, folder):
    run_dir = Path(folder, f"run-{world_size}")
    shared = ["--config", str(Path(folder, "all.yaml")), f"--trainer.devices={world_size}", "--run_dir", str(run_dir)]
    ring = ["--trainer.strategy=ring_ddp"] if world_size > 1 else []
    exact = ["--trainer.precision=64-true", "--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.01"]
    assert main(["fit", *shared, *ring, *exact, LARGER, "--init_from", str(Path(folder, "first"))]) == 0
    return checkpoint(run_dir)["state_dict"] if world_size == 1 or dist.get_rank() == 0 else None


def on_this_rank(folder):
    """As a launcher's process: it finds its rank in the environment."""
    rank = dist.get_rank()
    rank_zero_only.rank = rank  # read by Lightning when it was imported, before this process knew
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    return continue_on(dist.get_world_size(), folder)


def test_two_processes_begin_alike(first):
    one, two = continue_on(1, str(first.parent)), run_ranks(2, on_this_rank, str(first.parent))[0]
    torch.testing.assert_close(two, one, rtol=0, atol=1e-12)  # fp64: some roundings of weights of order 1
