"""The tests of the ring see it broken: each way of breaking it makes them fail.

A copy of the package is broken in one place and `test_ring_losses.py` runs against it in a process of its own.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import siglightning

ROOT = Path(siglightning.__file__).parent
TESTS = Path(__file__).parents[1]
# name -> file, what stands there, what is put in its place
MUTATIONS = {
    "drop a hop": ("distributed/ring.py", "for hop in range(self.size):", "for hop in range(max(1, self.size - 1)):"),
    "see a block twice": ("distributed/ring.py", "spare, held = held if hop else None, flight.wait()", "flight.wait()"),
    "send blocks the wrong way": (
        "distributed/ring.py",
        "(self.rank + 1) % self.size, (self.rank - 1) % self.size",
        "(self.rank - 1) % self.size, (self.rank + 1) % self.size",
    ),
    "forget what came before": (
        "distributed/exchange.py",
        "share = self.combine(arrived, share)",
        "pass",
    ),
    "give gathered shares to the wrong rank": (
        "distributed/exchange.py",
        "self._shares[self.ring.owner(owner)]",
        "self._shares[owner]",
    ),
    "flip the sign of positives": ("losses/eager_sigmoid.py", "s[tile.positives] *= -1", "s[tile.positives] *= 1"),
    "flip the sign of their derivative": (
        "losses/eager_sigmoid.py",
        "p[tile.positives] *= -1",
        "p[tile.positives] *= 1",
    ),
    "take a foreign diagonal for pairs": ("losses/eager_sigmoid.py", "owner == self.rank", "True"),
    "forget the world size": (
        "losses/inputs.py",
        "return self.ring.size / sum(self.sizes)",
        "return 1 / sum(self.sizes)",
    ),
    "use own columns' sums for foreign ones": (
        "losses/softmax.py",
        "blocks.add_gradients(texts, lse,",
        "blocks.add_gradients(texts, column_lse,",
    ),
}


def run_ring_tests(package_parent):
    """Three ranks, even batches in fp64: enough to see every mutation. Runs where the copy is found before ours."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-x",
        "-n0",
        "-p",
        "no:cacheprovider",
        "-k",
        "3- and -even- and 64",
    ]
    environment = os.environ | {"PYTHONPATH": str(package_parent), "OMP_NUM_THREADS": "1"}
    test = TESTS / "distributed" / "test_ring_losses.py"
    return subprocess.run(
        [*command, str(test)], env=environment, cwd=package_parent, capture_output=True, text=True, check=False
    )


@pytest.fixture
def copy(tmp_path):
    """The parent folder of a copy of the package without its data."""
    shutil.copytree(ROOT, tmp_path / "siglightning", ignore=shutil.ignore_patterns("archive", "__pycache__"))
    return tmp_path


def test_an_unbroken_copy_passes(copy):
    run = run_ring_tests(copy)
    assert run.returncode == 0, run.stdout + run.stderr
    assert " passed" in run.stdout


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_a_broken_copy_fails(copy, mutation):
    name, original, broken = MUTATIONS[mutation]
    path = copy / "siglightning" / name
    source = path.read_text()
    assert source.count(original) == 1, f"{original!r} must stand in {name} once"
    path.write_text(source.replace(original, broken))
    run = run_ring_tests(copy)
    assert run.returncode == 1, run.stdout + run.stderr  # 1: tests failed; anything else: they did not run
    assert "failed" in run.stdout or "error" in run.stdout
