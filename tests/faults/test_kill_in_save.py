"""Kill -9 while a checkpoint is saved: what has a final name is whole, and the run goes on."""

import os
import random
import signal
import sys
import time
from itertools import count
from pathlib import Path

import pytest
import torch
from faulty import kill_at_byte
from runs import NO_CALLBACKS, ONE, assert_same_run, callback, fit, undisturbed

from siglightning.runtime.checkpoint import AtomicCheckpointIO, newest_intact
from siglightning.runtime.rundir import RunDir, claim
from siglightning.runtime.sidecar import verify

KILLS = 20
SIZE = 12 * 2**20  # bytes, of the tensor in a checkpoint
STEPS = 6


def content(step):
    """12 MiB that differ from step to step."""
    generator = torch.Generator().manual_seed(step)
    weight = torch.randint(0, 256, (SIZE,), dtype=torch.uint8, generator=generator)
    return {"state_dict": {"weight": weight}, "optimizer_states": [], "global_step": step}


def save(folder, step):
    """A save as a run makes it: the new file, then the oldest goes."""
    writer = AtomicCheckpointIO()
    writer.save_checkpoint(content(step), folder / f"step-{step:08d}.ckpt")
    for path in sorted(folder.glob("*.ckpt"))[:-2]:
        writer.remove_checkpoint(path)


def count_calls(action):
    """Call ``action(n)`` at the n-th call of a function that is not written in Python, from now on."""
    numbers = count(1)
    sys.setprofile(lambda frame, event, arg: action(next(numbers)) if event == "c_call" else None)


def calls_of_a_save(folder):
    """How many of these calls a save makes: opening, writing, syncing, renaming, deleting are among them."""
    seen = []
    save(folder, 1)
    save(folder, 2)
    count_calls(seen.append)
    save(folder, 3)
    sys.setprofile(None)
    return seen[-2]  # the last one ends the counting


def die_in_second_save(folder, first, at_byte, at_call):
    """Make one whole checkpoint, and die in the middle of the next; for a process of its own."""
    save(folder, first)
    if at_byte is not None:
        kill_at_byte(at_byte)
    else:
        count_calls(lambda number: os.kill(os.getpid(), signal.SIGKILL) if number == at_call else None)
    for step in count(first + 1):
        save(folder, step)


def in_a_child(work, *arguments):
    child = os.fork()
    if child == 0:
        try:
            work(*arguments)
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_a_save_killed_at_random_moments_never_leaves_a_broken_file(tmp_path, observe):
    """Half of the moments are bytes of the file, half are calls: before the file, after it, at the renames."""
    dice, run_dir, pauses, interrupted = random.Random(8), RunDir(tmp_path), [], 0
    run_dir.checkpoints.mkdir()
    run_dir.config.write_text("trainer: {}\n")
    calls, newest = calls_of_a_save(run_dir.checkpoints), 3
    for number in range(KILLS):
        by_byte = number % 2 == 0
        moment = dice.randrange(SIZE) if by_byte else None, None if by_byte else dice.randint(1, calls)
        assert in_a_child(die_in_second_save, run_dir.checkpoints, newest + 1, *moment) == -signal.SIGKILL
        killed = time.monotonic()
        interrupted += any(run_dir.checkpoints.glob(".*"))
        claim(run_dir).release()  # what the next start does first
        found = newest_intact(run_dir.checkpoints)
        pauses.append(time.monotonic() - killed)
        assert found.passed_over == []
        assert found.global_step in (newest + 1, newest + 2), moment
        newest = found.global_step
        assert_whole(run_dir.checkpoints)
    assert interrupted > KILLS / 2  # the moments were within saves, not between them
    observe(
        f"kill -9 at {KILLS} random moments of a save of 12 MiB",
        expected="never a broken file under a final name; the newest one or the one before is resumed from",
        observed="every file with a final name verified and loaded each time, nothing passed over, no leftovers",
        seconds=max(pauses),
    )


def assert_whole(folder):
    """All checkpoints are what their names and checksums say, and nothing else is there."""
    paths = sorted(folder.glob("*.ckpt"))
    for path in paths:
        verify(path)
        loaded = torch.load(path, weights_only=True)
        assert path.name == f"step-{loaded['global_step']:08d}.ckpt"
        assert torch.equal(loaded["state_dict"]["weight"], content(loaded["global_step"])["state_dict"]["weight"])
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        name for path in paths for name in (path.name, f"{path.name}.sha256")
    )


@pytest.mark.slow
@pytest.mark.parametrize(("step", "share"), [(1, 0.5), (3, 0.01), (6, 0.9)])
def test_a_run_killed_in_a_save_goes_on_to_the_bit(whole, observe, step, share):
    """The first, a middle and the last checkpoint; the first leaves a run that has none."""
    folder = whole.parent
    size = (whole / "checkpoints" / f"step-{STEPS:08d}.ckpt").stat().st_size
    name, note = f"killed at {step}", folder / f"{step}.time"
    fault = callback("KillInSave", step=step, share=share, size=size, note=str(note))
    killed = fit(folder, name, fault, config=CONFIG)
    assert killed.code == -signal.SIGKILL, killed.output
    (half,) = (folder / name / "checkpoints").glob(".*.tmp")
    assert half.stat().st_size == int(share * size)
    going_on = fit(folder, name, NO_CALLBACKS, config=CONFIG)
    assert going_on.code == 0, going_on.output
    assert (f"from step {step - 1}" in going_on.output) == (step > 1)
    assert "Passed over" not in going_on.output
    assert not [path for path in (folder / name).rglob(".*") if path.name != ".lock"]
    assert_same_run(folder / name, whole)
    observe(
        f"kill -9 of a run in the save of step {step}, {share:.0%} of the file written",
        expected="the same command goes on from the checkpoint before and ends to the bit",
        observed="went on; weights, optimizer and metrics equal to the bit, the half file gone",
        seconds=going_on.ended - float(Path(note).read_text()),
    )


CONFIG = ONE.replace("every_n_steps: 2", "every_n_steps: 1")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return undisturbed(tmp_path_factory.mktemp("saves"), config=CONFIG)
