"""`benchmarks.gpu_ring` on three gloo processes: its JSON, its refusals, and its arithmetic."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_ring import COMPUTE, STEPS, TRANSFERS, summary

ROOT = Path(__file__).parents[2]


def started(*arguments, ranks=3):
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [*launcher, "-m", "benchmarks.gpu_ring", *arguments]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)


def test_a_tiny_run_measures_all_and_writes_what_it_prints(tmp_path):
    done = started("--tiny", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr[-2000:]
    (cell,) = json.loads((tmp_path / "gpu_ring.json").read_text())["cells"]
    assert (cell["ranks"], cell["pairs"], cell["dim"], cell["dtype"]) == (3, 96, 16, "float32")
    assert cell["seconds"].keys() == {*STEPS, COMPUTE, TRANSFERS}
    assert all(len(values) == cell["turns"] == 12 and min(values) > 0 for values in cell["seconds"].values())
    assert f"hidden of the ring's transfers: {cell['hidden_share_of_the_ring']:.1%}" in done.stdout


def test_what_is_hidden_is_what_a_step_does_not_take_beyond_its_compute():
    """A step of 11 beside a compute of 10 and transfers of 4: three of four are hidden."""
    seconds = {name: [11.0, 11.0, 90.0] for name in STEPS} | {COMPUTE: [10.0, 10.0, 10.0], TRANSFERS: [4.0, 4.0, 4.0]}
    found = summary(seconds)
    assert found["hidden_share_of_the_ring"] == pytest.approx(0.75)
    assert found["rows"][0] == {"name": "ring", "exposed_s": 1.0, "over_compute": pytest.approx(1.1)}


def test_it_says_how_to_be_started():
    command = [sys.executable, "-m", "benchmarks.gpu_ring", "--tiny"]
    environment = {name: value for name, value in os.environ.items() if name != "RANK"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "Expected to be started by torchrun, got one process" in done.stderr
