"""A rank that is stopped from outside, or that does not make a call: the others end, and name it."""

import json
import os
import time

import pytest
from runs import PLAIN, SMALL, callback, fit, torchrun

RING_TIMEOUT_S = 18
CONFIG = SMALL.replace("ring_timeout_s: 40", f"ring_timeout_s: {RING_TIMEOUT_S}")


FROZEN = "did not answer at step 3, having finished step 2: dead, or stopped from outside"
SKIPPED = "The ranks wait in different calls at step 3 (rank 0: call 4, sigmoid_loss with gradients; rank 1: call 3, "


@pytest.mark.parametrize(("fault", "rank", "launch", "named"), [
    ("Freeze", 1, PLAIN, f"Rank 1 {FROZEN}"),
    pytest.param("Freeze", 0, torchrun(3), f"Rank 0 {FROZEN}", marks=pytest.mark.slow),
    pytest.param("SkipTheLoss", 1, PLAIN, SKIPPED, marks=pytest.mark.slow),
])  # fmt: skip
def test_the_others_end_and_name_it(tmp_path, observe, fault, rank, launch, named):
    note = tmp_path / "pid"
    ended = fit(tmp_path, "run", callback(fault, rank=rank, step=3, note=str(note)), launch=launch, config=CONFIG)
    seconds = time.time() - note.stat().st_mtime
    assert ended.code == (4 if launch is PLAIN else 1), ended.output
    assert named in ended.output, ended.output
    with pytest.raises(ProcessLookupError):  # nothing is left behind
        os.kill(int(note.read_text()), 0)
    if rank != 0:  # a process that is stopped writes nothing
        assert json.loads((tmp_path / "run" / "exit.json").read_text())["exit_code"] == 4
    observe(
        f"{'SIGSTOP of' if fault == 'Freeze' else 'a collective skipped by'} rank {rank} of 3"
        f"{'' if launch is PLAIN else ' under torchrun'}",
        expected="all end with exit code 4 (torchrun makes 1 of it); the rank and the step are named",
        observed=f'exit code {ended.code}, time-out of a step {RING_TIMEOUT_S} s: "{named}"',
        seconds=seconds,
    )
