"""SIGTERM to one of several processes: all stop after the same step, and the run goes on to the bit."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
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
  devices: 3
  max_steps: 60
  limit_val_batches: 0
  enable_progress_bar: false
checkpoint: {every_n_steps: 0}
test_after_fit: false
"""
STEPS = 60
PATHS = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
PLAIN = [sys.executable, "-m", "siglightning"]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=3"]


def run(folder, launch, name, *flags):
    arguments = ["fit", "--config", "quickstart", "--config", "small.yaml", "--trust_imports", "faulty"]
    return subprocess.run(
        [*launch, *arguments, "--run_dir", name, *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": PATHS},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def weights(run_dir):
    return torch.load(run_dir / "checkpoints" / f"step-{STEPS:08d}.ckpt", weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("stop")
    (folder / "small.yaml").write_text(CONFIG)
    undisturbed = run(folder, PLAIN, "undisturbed")
    assert undisturbed.returncode == 0, undisturbed.stdout + undisturbed.stderr
    return folder


def terminate(rank, parent=False):
    callback = {"class_path": "faulty.Terminate", "init_args": {"rank": rank, "step": 5, "parent": parent}}
    return f"--config={json.dumps({'trainer': {'callbacks': [callback]}})}"


@pytest.mark.parametrize(("name", "launch", "rank", "parent"), [
    pytest.param("rank 0", PLAIN, 0, False, marks=pytest.mark.slow),
    ("rank 2", PLAIN, 2, False),
    pytest.param("torchrun", [*TORCHRUN, "-m", "siglightning"], 1, True, marks=pytest.mark.slow),
    ("rank 1 under torchrun", [*TORCHRUN, "--max_restarts=1", "-m", "siglightning"], 1, False),
])  # fmt: skip
def test_all_stop_after_the_same_step(folder, name, launch, rank, parent):
    stopped = run(folder, launch, name, terminate(rank, parent))
    output = stopped.stdout + stopped.stderr
    # torchrun makes 1 of every code, and restarts what failed: the restarted processes find that it was no failure.
    assert stopped.returncode == (75 if launch is PLAIN else 1), output
    record = json.loads((folder / name / "exit.json").read_text())
    assert (record["status"], record["exit_code"]) == ("preempted", 75)
    assert 5 < record["global_step"] < STEPS
    checkpoints = sorted(path.name for path in (folder / name / "checkpoints").glob("*.ckpt"))
    assert checkpoints == [f"step-{record['global_step']:08d}.ckpt"]
    assert output.count("the same command goes on from there") == 1
    rest = run(folder, launch, name, "--config={trainer: {callbacks: null}}")
    assert rest.returncode == 0, rest.stdout + rest.stderr
    assert f"from step {record['global_step']}" in rest.stdout
    for key, value in weights(folder / "undisturbed").items():
        assert torch.equal(weights(folder / name)[key], value), key
