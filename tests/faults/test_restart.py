"""Ranks are killed under torchrun, which starts all of them again: the run ends as if nothing had happened."""

import csv
from pathlib import Path

from runs import assert_same_bits, callback, fit, torchrun, undisturbed

KILLS = [[0, 1, 3], [1, 0, 5]]  # attempt, rank, step: rank 1 within step 3, then, all having been restarted, rank 0


def losses(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return {row["step"]: row["train/loss"] for row in csv.DictReader(file) if row["train/loss"]}


def test_ranks_killed_twice_come_back_to_the_bit(tmp_path, observe):
    expected = undisturbed(tmp_path)
    note = callback("KillAt", kills=KILLS, note=str(tmp_path / "times"))
    killed = fit(tmp_path, "killed", note, launch=torchrun(3, restarts=2))
    assert killed.code == 0, killed.output
    assert [f"from step {step}" in killed.output for step in (2, 4)] == [True, True]
    assert_same_bits(tmp_path / "killed", expected)
    assert losses(tmp_path / "killed") == losses(expected)
    assert len(losses(expected)) == 6
    times = [float(line.split()[1]) for line in Path(tmp_path / "times").read_text().splitlines()]
    observe(
        "kill -9 of rank 1 in mid-step, then of rank 0, three ranks under torchrun --max-restarts 2",
        expected="resumes by itself; weights and losses equal to the bit",
        observed="resumed by itself from steps 2 and 4; weights and all losses equal to the bit",
        seconds=max(after - before for before, after in zip(times[::2], times[1::2], strict=True)),
    )
