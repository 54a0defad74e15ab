"""The fused kernels compile for GPUs that are not here, and keep within their registers."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

ROOT = Path(__file__).parents[2]


def reports(*arguments):
    """Of a process of its own: here kernels are the interpreter's."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "benchmarks.kernels", "--json", *arguments]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_hopper_kernels_use_the_matrix_units_and_do_not_spill():
    """The first draft, all columns of a block at once, spilled 768 bytes a thread."""
    found = reports("--architectures", "90", "--dtypes", "bf16")
    assert len(found) == 6
    for report in found:
        assert report["matrix_units"] >= 4, report
        assert report["spilled"] == 0, report
        assert report["shared"] <= 227 * 1024, report  # what a block may have there


@pytest.mark.slow
def test_all_architectures_and_types_compile():
    found = reports()
    assert len(found) == 4 * 4 * 6
    for report in found:
        assert report["spilled"] == 0, report
        assert (report["matrix_units"] > 0) == (report["dtype"] != "fp32"), report
