"""Shared set-up: references to import, one core a test process, Triton on the CPU, faults that are written down."""

import json
import logging
import os
import sys
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # before anything imports Triton, which asks only then

sys.path.insert(0, str(Path(__file__).parent))
torch.set_num_threads(1)  # two test processes share two cores


def pytest_addoption(parser):
    parser.addoption("--faults-to", type=Path, help="append what fault tests observed to this file, JSON a line")


@pytest.fixture(autouse=True)
def log_levels_stay():
    """Whatever a test hushes is heard again by the next one of its process."""
    loggers = [logging.getLogger(name) for name in ("lightning", "lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, levels, strict=True):
        logger.setLevel(level)


@pytest.fixture
def observe(request):
    """Write down ``observe(fault, expected=..., observed=..., seconds=...)`` for benchmarks/results/faults.md.

    ``seconds`` are those from the fault until the run had ended or was going on again; ``None`` where it never stood.
    """
    path, test = request.config.getoption("--faults-to"), request.node.nodeid

    def write(fault, *, expected, observed, seconds):
        if path is not None:
            row = {"fault": fault, "expected": expected, "observed": observed, "seconds": seconds, "test": test}
            with path.open("a") as file:
                file.write(json.dumps(row) + "\n")

    return write
