"""A run that was cut off ends like one that was not, to the bit, in its weights and in its metrics."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from cli_examples import TINY, fails

from siglightning.cli import main

MEASURED = ("throughput/", "memory/", "epoch/seconds", "epoch/peak_memory")
TESTS = Path(__file__).parent


def final_state(run_dir, step=10):
    checkpoint = torch.load(Path(run_dir) / "checkpoints" / f"step-{step:08d}.ckpt", weights_only=True)
    return checkpoint["state_dict"], checkpoint["optimizer_states"], checkpoint["lr_schedulers"]


def metrics(run_dir):
    """Rows of ``metrics.csv`` without what depends on the clock and the machine."""
    with (Path(run_dir) / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    kept = [{name: cell for name, cell in row.items() if not name.startswith(MEASURED)} for row in rows]
    assert {"step", "train/loss", "val/loss", "test/loss"} <= kept[0].keys()
    return kept


def assert_same_run(one, other):
    assert metrics(one) == metrics(other)
    torch.testing.assert_close(final_state(one), final_state(other), rtol=0, atol=0)


def ended(run_dir):
    return json.loads((Path(run_dir) / "exit.json").read_text())


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """A run of ten steps, in epochs of six, with a validation every four steps."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "tiny.yaml").write_text(TINY)
    arguments = ["--config", str(folder / "tiny.yaml"), "--run_dir", str(folder / "run")]
    assert main(["fit", *arguments, "--trust_imports", "cli_examples"]) == 0
    return folder / "run"


@pytest.fixture
def undisturbed(whole_run, here):
    """A copy of the whole run in ``whole``."""
    return Path(shutil.copytree(whole_run, here / "whole"))


# After a validation, at the last step of an epoch, at the first of the next, and with an epoch's end in between.
@pytest.mark.parametrize(("every", "fail_at"), [(1, 4), (1, 6), (1, 7), (4, 7), (5, 6), (3, 9)])
def test_a_crash_leaves_no_mark(undisturbed, fit, every, fail_at):
    """The failing step is not reached again, because the second start leaves the failure out."""
    more = ("--run_dir", "cut", f"--checkpoint.every_n_steps={every}")
    code, out = fit(*more, fails(fail_at))
    assert code == 1
    assert "RuntimeError: something broke" in out
    assert ended("cut")["status"] == "failed"
    assert ended("cut")["global_step"] == fail_at

    code, out = fit(*more, "--resume=must")
    assert code == 0, out
    assert "Resuming cut from step" in out
    assert "Changed since the last start: trainer.callbacks: [{'class_path': 'cli_examples.Fail'" in out
    assert_same_run("cut", undisturbed)
    assert ended("cut") | {"seconds": 0, "finished_at": ""} == {
        **{"status": "done", "exit_code": 0, "global_step": 10, "message": ""},
        **{"seconds": 0, "finished_at": ""},
    }


@pytest.mark.parametrize(("every", "step"), [(1, 4), (2, 8), (500, 8)])
def test_a_crash_in_a_validation_repeats_it(undisturbed, fit, every, step):
    """A step is saved after its validation, so the validation cut off is neither lost nor half counted."""
    more = ("--run_dir", "cut", f"--checkpoint.every_n_steps={every}")
    crash = f"{{class_path: cli_examples.Crash, init_args: {{step: {step}, in_validation: true}}}}"
    assert fit(*more, "--config", f"{{trainer: {{callbacks: [{crash}]}}}}")[0] == 1
    code, out = fit(*more, "--config", "{trainer: {callbacks: null}}")
    assert code == 0, out
    assert_same_run("cut", undisturbed)


def test_kill_9_then_the_same_command_again(undisturbed, fit, here):
    """Nothing runs after SIGKILL: what is on disk must do, and the lock must be free."""
    arguments = ["fit", "--config", "tiny.yaml", "--trust_imports", "cli_examples", "--run_dir", "cut"]
    arguments += ["--checkpoint.every_n_steps=2", fails(7, "kill")]
    killed = subprocess.run(
        [sys.executable, "-m", "siglightning", *arguments],
        env=os.environ | {"PYTHONPATH": str(TESTS)},
        capture_output=True,
        check=False,
    )
    assert killed.returncode == -signal.SIGKILL
    assert not (here / "cut" / "exit.json").exists()
    (here / "cut" / "checkpoints" / ".step-00000008.ckpt.1.tmp").write_text("half a file")

    code, out = fit("--run_dir", "cut")
    assert code == 0, out
    assert_same_run("cut", undisturbed)
    assert not list((here / "cut" / "checkpoints").glob(".*"))


def test_a_longer_run_continues_exactly(fit):
    """Raising max_steps after the end gives the run that was longer from the start."""
    assert fit("--run_dir", "long", "--trainer.max_steps=15")[0] == 0
    assert fit("--run_dir", "short", "--trainer.max_steps=9")[0] == 0
    code, out = fit("--run_dir", "short", "--trainer.max_steps=15")
    assert code == 0
    assert "Changed since the last start: trainer.max_steps: 9 -> 15" in out
    assert metrics("short") == metrics("long")
    torch.testing.assert_close(final_state("short", 15), final_state("long", 15), rtol=0, atol=0)


def test_each_start_leaves_its_config_and_environment(fit, here):
    fit("--run_dir", "run", fails(5))
    first = (here / "run" / "config.yaml").read_text()
    fit("--run_dir", "run")
    assert (here / "run" / "config.yaml").read_text() == first
    saved = yaml.safe_load((here / "run" / "config.resume-1.yaml").read_text())
    assert saved["trainer"]["callbacks"] is None
    assert saved["model"]["init_args"]["optimizer"]["init_args"]["lr"] == 0.05
    environment = json.loads((here / "run" / "env.resume-1.json").read_text())
    assert environment["command"][:4] == ["siglightning", "fit", "--config", "tiny.yaml"]
    assert environment["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert environment["hardware"]["cores"] >= 1


def test_a_saved_config_repeats_the_run(undisturbed, fit):
    code, out = fit("--config", "whole/config.yaml", "--run_dir", "again")
    assert code == 0, out
    assert_same_run("again", undisturbed)


def test_checkpoint_values_never_override_flags(fit, here):
    """The checkpoint stores the name that the first run had among its hyper-parameters; the second has another."""
    fit("--run_dir", "run", fails(5), "--model.name=first")
    found = torch.load(here / "run" / "checkpoints" / "step-00000004.ckpt", weights_only=True)
    assert found["hyper_parameters"]["name"] == "first"
    more = ("--ckpt_path", "run/checkpoints/step-00000004.ckpt", "--model.name=second")
    assert fit("--run_dir", "other", *more)[0] == 0
    found = torch.load(here / "other" / "checkpoints" / "step-00000010.ckpt", weights_only=True)
    assert found["hyper_parameters"]["name"] == "second"


def test_a_finished_run_is_refused_and_stays_finished(undisturbed, fit):
    before = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    for _ in range(2):
        code, out = fit("--run_dir", "whole")
        assert code == 2
        assert "error: whole holds a finished run. Start a new one with another --run_dir" in out
    before.pop(undisturbed / ".lock", None)
    after = {path: path.read_bytes() for path in undisturbed.rglob("*") if path.is_file()}
    assert after.items() >= before.items()


def test_never_refuses_what_is_there(fit):
    fit("--run_dir", "run", fails(5))
    code, out = fit("--run_dir", "run", "--resume=never")
    assert code == 2
    assert "`--resume never` forbids to continue it" in out


def test_a_run_without_a_checkpoint_starts_again_or_must_not(undisturbed, fit):
    fit("--run_dir", "run", fails(2))
    code, out = fit("--run_dir", "run", "--resume=must")
    assert code == 2
    assert "expects a checkpoint in run/checkpoints, found none" in out
    assert ended("run")["status"] == "failed"
    assert fit("--run_dir", "run")[0] == 0
    assert_same_run("run", undisturbed)


def flipped(content):
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]


DAMAGE = {
    "truncated": (lambda content: content[:-100], "is truncated: expected"),
    "bit-flipped": (flipped, "is damaged: its content does not match its SHA-256"),
    # What a file system leaves that had written the length before a power failure, but not the data.
    "zero-tailed": (lambda content: content[:-500] + bytes(500), "is damaged: its content does not match its SHA-256"),
    "emptied": (lambda content: b"", "is truncated: expected"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_passed_over(undisturbed, fit, here, observe, kind):
    fit("--run_dir", "cut", "--checkpoint.every_n_steps=2", fails(7))
    damage, reason = DAMAGE[kind]
    newest = here / "cut" / "checkpoints" / "step-00000006.ckpt"
    newest.write_bytes(damage(newest.read_bytes()))
    begun = time.monotonic()
    code, out = fit("--run_dir", "cut", "--checkpoint.every_n_steps=2")
    seconds = time.monotonic() - begun
    assert code == 0
    (line,) = [line for line in out.splitlines() if line.startswith("Passed over: ")]
    assert f"{newest.relative_to(here)} {reason}" in line
    assert "Resuming cut from step 4" in out
    assert_same_run("cut", undisturbed)
    observe(
        f"newest checkpoint {kind}",
        expected="the next start says so, goes on from the one before, ends at the undisturbed weights to the bit",
        observed="named with the reason; from step 4 instead of 6 to the end; weights, optimizer, metrics equal",
        seconds=seconds,
    )


def test_nothing_but_damage_is_refused(fit, here, observe):
    fit("--run_dir", "cut", "--checkpoint.every_n_steps=2", fails(7))
    checkpoints = sorted((here / "cut" / "checkpoints").glob("*.ckpt"))
    for path, (damage, _) in zip(checkpoints, list(DAMAGE.values())[:2], strict=True):
        path.write_bytes(damage(path.read_bytes()))
    before, begun = contents(here), time.monotonic()
    code, out = fit("--run_dir", "cut", "--checkpoint.every_n_steps=2")
    seconds = time.monotonic() - begun
    assert code == 2
    assert "error: No checkpoint in cut/checkpoints is intact: " in out
    assert [f"{path.name} is " in out for path in checkpoints] == [True, True]
    assert "Start again with another --run_dir, or delete the damaged files to start from the beginning." in out
    assert contents(here) == before
    observe(
        "every checkpoint damaged",
        expected="refused with the reason of each and the way out, exit 2, nothing changed",
        observed="refused with the reason of each and the way out, exit 2, nothing changed",
        seconds=seconds,
    )


def test_a_damaged_file_of_a_later_step_is_none_to_keep_by(undisturbed, fit, here):
    """Counted among those to keep, it would be the only one that is left."""
    every = ("--run_dir", "cut", "--checkpoint.every_n_steps=4")
    assert fit(*every, fails(9))[0] == 1
    later = here / "cut" / "checkpoints" / "step-00000008.ckpt"
    later.write_bytes(later.read_bytes()[:-100])
    assert fit(*every, fails(6), "--checkpoint.every_n_steps=1", "--checkpoint.keep_last=1")[0] == 1
    kept = sorted(path.name for path in later.parent.glob("*.ckpt"))
    assert kept == ["step-00000006.ckpt", "step-00000008.ckpt"]
    code, out = fit(*every)
    assert code == 0, out
    assert "Resuming cut from step 6" in out
    assert_same_run("cut", undisturbed)


def contents(folder):
    """Path and bytes of every file but the lock."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_another_models_checkpoint_is_refused(fit, here):
    fit("--run_dir", "run", fails(5))
    kept = sorted(path.name for path in (here / "run").iterdir())
    code, out = fit("--run_dir", "run", "--model.width=5", "--data.width=5", "--allow_changed_recipe=true")
    assert code == 2
    assert "is a checkpoint of another model: layer.weight is [1, 5] in the model and [1, 3] in the checkpoint" in out
    assert ended("run")["status"] == "failed"
    assert sorted({path.name for path in (here / "run").iterdir()} | {".lock"}) == sorted({*kept, ".lock"})


@pytest.mark.parametrize(
    ("failure", "code", "status"),
    [("value", 1, "failed"), ("nan", 3, "not finite"), ("interrupt", 130, "interrupted")],
)
def test_ends_during_training(failure, code, status, fit, here):
    """A ValueError in a step is a bug, not a configuration error; the run can be resumed in any case."""
    got, out = fit("--run_dir", "run", fails(5, failure))
    assert got == code
    assert ("Traceback" in out) == (failure == "value")
    assert ended("run")["status"] == status
    assert ended("run")["exit_code"] == code
    assert fit("--run_dir", "run", "--resume=must")[0] == 0


def test_evaluations_get_directories_of_their_own(undisturbed, fit, here):
    before = (undisturbed / "metrics.csv").read_text()
    for name in ("test", "test-2"):
        code, out = fit("--run_dir", "whole", command="test")
        assert code == 0, out
        assert "Evaluating whole/checkpoints/step-00000010.ckpt" in out
        with (undisturbed / name / "metrics.csv").open() as file:
            assert next(csv.DictReader(file))["test/loss"] == metrics(undisturbed)[-1]["test/loss"]
        assert ended(undisturbed / name)["status"] == "done"
    assert (undisturbed / "metrics.csv").read_text() == before


def test_a_trial_writes_nothing(fit, here):
    assert fit("--trainer.fast_dev_run=2")[0] == 0
    assert [path.name for path in here.iterdir()] == ["tiny.yaml"]


def test_every_so_many_steps_a_checkpoint_is_kept_for_good(fit, here):
    options = ("--checkpoint.every_n_steps=1", "--checkpoint.keep_last=2", "--checkpoint.keep_every=3")
    assert fit("--run_dir", "run", *options)[0] == 0
    kept = sorted(path.stem for path in (here / "run" / "checkpoints").glob("*.ckpt"))
    assert kept == [f"step-{step:08d}" for step in (3, 6, 9, 10)]
    code, out = fit("--run_dir", "other", "--checkpoint.every_n_steps=2", "--checkpoint.keep_every=3")
    assert code == 2
    assert "keep_every to be a multiple of every_n_steps, got 3 and 2" in out


def test_out_of_memory_says_what_to_turn(fit, here):
    code, out = fit("--run_dir", "run", fails(5, "memory"))
    assert code == 1
    assert "Out of memory. In this order: lower the network's `micro_batch_size`" in out
    assert "Traceback" not in out
    assert fit("--run_dir", "run", "--resume=must")[0] == 0
