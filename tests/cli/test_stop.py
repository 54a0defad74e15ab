"""A run that is asked to stop saves the step under way, says so, and goes on as if nothing had happened."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cli_examples import TINY, fails
from test_resume import TESTS, assert_same_run, ended, final_state, metrics

from siglightning.cli import main


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """Ten steps, in epochs of six, with a validation every four steps."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(TINY)
    arguments = ["--config", str(folder / "tiny.yaml"), "--run_dir", str(folder / "run")]
    assert main(["fit", *arguments, "--trust_imports", "cli_examples"]) == 0
    return folder / "run"


@pytest.fixture
def undisturbed(whole_run, here):
    return Path(shutil.copytree(whole_run, here / "whole"))


def sending(name, step, where="step"):
    one = f"{{class_path: cli_examples.Signal, init_args: {{name: {name}, step: {step}, where: {where}}}}}"
    return ("--config", f"{{trainer: {{callbacks: [{one}]}}}}")


NOTHING = ("--config", "{trainer: {callbacks: null}}")


# A plain step, before a validation, the last one of an epoch, the first of the next, in a validation.
@pytest.mark.parametrize(
    ("name", "step", "where", "stops_at"),
    [
        ("SIGTERM", 1, "step", 2),
        ("SIGUSR1", 3, "step", 4),
        ("SIGINT", 5, "step", 6),
        ("SIGTERM", 6, "step", 7),
        ("SIGTERM", 4, "validation", 5),
    ],
)
def test_a_signal_saves_the_step_and_the_run_goes_on_to_the_bit(undisturbed, fit, name, step, where, stops_at):
    before = signal.getsignal(signal.SIGTERM)
    code, out = fit("--run_dir", "cut", *sending(name, step, where))
    assert code == 75, out
    assert f"Stopped by {name}; the same command goes on" in out
    assert "Traceback" not in out
    assert ended("cut")["status"] == "preempted"
    assert ended("cut")["exit_code"] == 75
    assert ended("cut")["global_step"] == stops_at
    assert signal.getsignal(signal.SIGTERM) == before
    code, out = fit("--run_dir", "cut", *NOTHING)
    assert code == 0, out
    assert f"Resuming cut from step {stops_at}" in out
    assert_same_run("cut", undisturbed)


@pytest.mark.parametrize(("step", "where"), [(9, "step"), (10, "test")])
def test_a_signal_after_training_leaves_the_tests_to_the_next_start(undisturbed, fit, here, step, where):
    code, out = fit("--run_dir", "cut", *sending("SIGTERM", step, where))
    assert code == 75, out
    assert "test/loss" not in (here / "cut" / "metrics.csv").read_text()
    code, out = fit("--run_dir", "cut", *NOTHING)
    assert code == 0, out
    torch.testing.assert_close(final_state("cut"), final_state(undisturbed), rtol=0, atol=0)
    rows = [metrics("cut"), metrics(undisturbed)]
    for row in rows:
        del row[-1]["epoch"]  # of the tests; Lightning counts the last epoch only when training has ended by itself
    assert rows[0] == rows[1]


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", 143), ("SIGINT", 130)])
def test_before_the_first_step_there_is_nothing_to_save(undisturbed, fit, here, name, code):
    got, out = fit("--run_dir", "cut", *sending(name, 0, "setup"))
    assert got == code, out
    assert "Traceback" not in out
    assert fit("--run_dir", "cut", *NOTHING)[0] == 0
    assert_same_run("cut", undisturbed)


@pytest.mark.parametrize("command", ["test", "validate"])
def test_an_evaluation_ends_at_once(undisturbed, fit, command):
    """Lightning's own handler waits for the end of the batch, and in `predict` for ever."""
    where = "test" if command == "test" else "validation"
    got, out = fit("--run_dir", "whole", *sending("SIGTERM", 0, where), command=command)
    assert got == 143, out
    assert ended(undisturbed / command)["status"] == "terminated"


def test_a_second_signal_leaves_at_once(here):
    """In a process of its own, since it ends; the first signal waits for a step that does not end."""
    arguments = ["fit", "--config", "tiny.yaml", "--trust_imports", "cli_examples", "--run_dir", "cut"]
    arguments += ["--checkpoint.every_n_steps=1", fails(7, "deaf")]
    run = subprocess.run(
        [sys.executable, "-m", "siglightning", *arguments],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 128 + signal.SIGTERM
    assert run.stderr.count("SIGTERM: saving and stopping after the step under way") == 1
    assert run.stderr.count("SIGTERM again: leaving at once") == 1
    assert [path.name for path in sorted((here / "cut" / "checkpoints").glob("*.ckpt"))][-1] == "step-00000007.ckpt"


def test_nothing_is_saved_in_the_middle_of_an_accumulated_step(fit, here):
    accumulate = ("--trainer.accumulate_grad_batches=2", "--trainer.max_steps=5")
    assert fit("--run_dir", "whole", *accumulate)[0] == 0
    assert fit("--run_dir", "cut", *accumulate, *sending("SIGTERM", 2))[0] == 75
    assert ended("cut")["global_step"] == 3
    assert fit("--run_dir", "cut", *accumulate, *NOTHING)[0] == 0
    assert metrics("cut") == metrics("whole")
