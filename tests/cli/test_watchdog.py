"""A process that stands still ends with the stacks of its threads, and the run goes on."""

import os
import subprocess
import sys
import threading

import pytest
from test_resume import TESTS, ended

from siglightning.runtime.watchdog import Watchdog

HANG_S = 8.0  # longer than a step on the busiest machine, as short as patience is


def test_a_hang_is_told_and_left(fit, here):
    hang = "{class_path: cli_examples.StandStill, init_args: {step: 5}}"
    arguments = ["fit", "--config", "tiny.yaml", "--trust_imports", "cli_examples", "--run_dir", "run"]
    arguments += ["--config", f"{{trainer: {{callbacks: [{hang}]}}}}", f"--watchdog.hang_s={HANG_S}"]
    paths = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    run = subprocess.run(
        [sys.executable, "-m", "siglightning", *arguments],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 4, run.stderr
    told = (here / "run" / "hang-rank-0.txt").read_text()
    for text in (run.stderr, told):
        assert f"Rank 0 has stood still for {HANG_S:g} s at step 5, in a training step." in text
        assert "in on_before_optimizer_step" in text  # the stack of the thread that hangs
    record = ended("run")
    assert (record["status"], record["exit_code"], record["global_step"]) == ("hang", 4, 5)
    code, out = fit("--run_dir", "run", "--config", "{trainer: {callbacks: null}}")
    assert code == 0, out
    assert "Resuming run from step 4" in out


def test_a_run_that_ends_ends_its_watchdog(fit):
    """A thread that outlived the run would end the process of whoever called it."""
    assert fit("--run_dir", "run", "--watchdog.hang_s=600")[0] == 0
    for thread in [thread for thread in threading.enumerate() if thread.name == "siglightning-watchdog"]:
        thread.join(60)  # it wakes at once; a busy machine lets it wait
        assert not thread.is_alive()


def test_wrong_times_are_refused(fit):
    with pytest.raises(ValueError, match="hang_s >= 0"):
        Watchdog(-1.0)
    code, out = fit("--watchdog.hang_s=-1")
    assert code == 2
    assert "Watchdog expects hang_s >= 0 (0: never), got -1.0" in out
