"""A run that is stopped again and again, at random moments and by random signals, ends as if it had never been."""

import os
import random
import signal
import subprocess
import time
from dataclasses import dataclass

import pytest
from runs import LIMIT_S, NO_CALLBACKS, ONE, SMALL, assert_same_run, callback, fit, gone, start, undisturbed, wait_until

MOST = 6  # steps that a start takes before it is stopped
SIGNALS = ("SIGTERM", "SIGUSR1", "SIGINT", "SIGKILL")


def config(text, cycles):
    """More steps than the cycles can take, validations in between, a save every third step, W&B offline."""
    return (
        text.replace("max_steps: 6", f"max_steps: {cycles * (MOST + 1) + 4}\n  val_check_interval: 10")
        .replace("limit_val_batches: 0", "limit_val_batches: 2\n  logger: {class_path: WandbLogger}")
        .replace("every_n_steps: 2", "every_n_steps: 3")
    )


@dataclass(frozen=True)
class Cycle:
    """How one start ends: ``signal`` to ``rank`` after ``steps`` of training or, if that is earlier, by the clock.

    The clock starts with the process or, with ``in_training``, when training begins.
    """

    signal: str
    rank: int
    steps: int
    clock_s: float | None
    in_training: bool

    @classmethod
    def thrown(cls, dice, ranks):
        clock = dice.choice((None, 8.0, 0.5))
        return cls(
            dice.choice(SIGNALS),
            dice.randrange(ranks),
            dice.randint(0, MOST),
            None if clock is None else dice.uniform(0, clock),
            clock == 0.5,
        )


def pids(folder):
    return {int(path.stem): int(path.read_text() or 0) for path in folder.glob("*.pid")}


def disturb(folder, run_dir, cycle, ranks, text):
    """One start that is stopped; its exit code, and the seconds until all its processes had ended."""
    notes = folder / "notes"
    notes.mkdir(exist_ok=True)
    for path in notes.iterdir():
        path.unlink()
    fault = callback("Disturb", rank=cycle.rank, steps=cycle.steps, signal_name=cycle.signal, folder=str(notes))
    process = start(folder, run_dir, fault, config=text)
    if cycle.clock_s is not None:
        by_clock(process, notes, cycle, ranks)
    code = process.wait(LIMIT_S)
    wait_until(lambda: all(gone(pid) for pid in pids(notes).values()))
    return code


def by_clock(process, notes, cycle, ranks):
    """Send the signal when the clock says so, unless the process has ended before."""
    if cycle.in_training:
        wait_until(lambda: len(pids(notes)) == ranks or process.poll() is not None)
    try:
        process.wait(cycle.clock_s)
    except subprocess.TimeoutExpired:
        pid = pids(notes).get(cycle.rank, process.pid)
        os.kill(pid if pid and not gone(pid) else process.pid, signal.Signals[cycle.signal])


def expected_codes(cycle, ranks):
    """75 with a checkpoint; without one, or before Python has handed its signals over, that of the signal."""
    number = signal.Signals[cycle.signal]
    if number == signal.SIGKILL:
        return {-number} if ranks == 1 else {-number, 1, 4}  # the ranks that are left say who is missing
    return {75, 128 + number, -number, 143} | ({1} if number == signal.SIGINT else set())


@pytest.mark.slow
@pytest.mark.parametrize(("ranks", "cycles"), [(1, 20), (3, 5)])
def test_stops_and_starts_leave_no_mark(tmp_path, observe, ranks, cycles):
    dice, text = random.Random(ranks), config(ONE if ranks == 1 else SMALL, cycles)
    whole, codes, begun = undisturbed(tmp_path, config=text), [], time.monotonic()
    for _ in range(cycles):
        cycle = Cycle.thrown(dice, ranks)
        codes.append(disturb(tmp_path, "run", cycle, ranks, text))
        assert codes[-1] in expected_codes(cycle, ranks), (cycle, codes, (tmp_path / "run.log").read_text()[-3000:])
    rest = fit(tmp_path, "run", NO_CALLBACKS, config=text)
    seconds = time.monotonic() - begun
    assert rest.code == 0, rest.output
    run_dir = tmp_path / "run"
    assert_same_run(run_dir, whole)
    assert not [path for path in run_dir.glob(".*") if path.name != ".lock"]
    assert not list((run_dir / "checkpoints").glob(".*"))
    assert {path.name.rpartition("-")[2] for path in (run_dir / "wandb").glob("offline-run-*")} == {
        (run_dir / "wandb_id.txt").read_text().strip()
    }
    kinds = {code: codes.count(code) for code in sorted(set(codes))}
    observe(
        f"{cycles} stops and starts at random steps and times, random signals to random ones of {ranks} process(es)",
        expected="undisturbed weights, optimizer, metrics to the bit, one W&B id, nothing left over",
        observed=f"equal to the bit after exit codes {kinds} (code: times); {seconds:.0f} s for all starts",
        seconds=seconds / (cycles + 1),
    )
