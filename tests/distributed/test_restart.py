"""A rank is killed under torchrun, which starts all of them again: the run ends as if nothing had happened."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import torch

CONFIG = """
model:
  init_args:
    network:
      init_args:
        image_tower: {name: "local:conv", kwargs: {width: 8, depths: [1, 1]}}
        text_tower: {name: "local:text_transformer", kwargs: {width: 16, depth: 1, heads: 2, dropout: 0.2}}
        embed_dim: 16
data:
  init_args: {global_batch_size: 12}
trainer:
  strategy: {class_path: siglightning.distributed.RingDDPStrategy, init_args: {ring_timeout_s: 40}}
  devices: 2
  max_steps: 6
  log_every_n_steps: 1
  limit_val_batches: 0
  enable_progress_bar: false
checkpoint: {every_n_steps: 2}
"""
KILL = "trainer: {callbacks: [{class_path: faulty.KillOnce, init_args: {rank: 1, step: 3}}]}"


def torchrun(folder, name, *configs):
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "--max_restarts=1"]
    command = [*launch, "-m", "siglightning", "fit", "--config", "quickstart", "--trust_imports", "faulty"]
    command += [part for config in configs for part in ("--config", str(folder / config))]
    command += ["--run_dir", str(folder / name), "--test_after_fit=false"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent)}
    run = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout + run.stderr
    return run.stdout + run.stderr


def losses(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return {row["step"]: row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


def test_a_killed_rank_comes_back_to_the_bit(tmp_path):
    (tmp_path / "small.yaml").write_text(CONFIG)
    (tmp_path / "kill.yaml").write_text(KILL)
    torchrun(tmp_path, "undisturbed", "small.yaml")
    output = torchrun(tmp_path, "killed", "small.yaml", "kill.yaml")
    assert "Resuming" in output
    assert "from step 2" in output
    states = [
        torch.load(tmp_path / name / "checkpoints" / "step-00000006.ckpt", weights_only=True)["state_dict"]
        for name in ("undisturbed", "killed")
    ]
    for key, value in states[0].items():
        assert torch.equal(states[1][key], value), key
    assert losses(tmp_path / "killed") == losses(tmp_path / "undisturbed")
    assert len(losses(tmp_path / "killed")) == 6
