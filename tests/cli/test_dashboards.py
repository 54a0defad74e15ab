"""Logger fragments: what they write lies in the run directory, and a resumed run stays one run."""

import csv
import re
import shutil

import pytest
import wandb
from cli_examples import fails


def starts_of_one_run(fit, fragment):
    code, out = fit("--config", fragment, "--run_dir", "run", fails(5))
    assert code == 1, out
    code, out = fit("--config", fragment, "--run_dir", "run")
    assert code == 0, out


def test_wandb_stays_one_offline_run(fit, here):
    starts_of_one_run(fit, "logger/wandb")
    identity = (here / "run" / "wandb_id.txt").read_text().strip()
    folders = sorted(path.name for path in (here / "run" / "wandb").glob("offline-run-*"))
    assert len(folders) == 2
    # Of two starts within one second the second's folder is called after the first's, with a number behind.
    assert [re.sub(r"-\d$", "", name).rpartition("-")[2] for name in folders] == [identity, identity]
    for name in folders:
        assert (here / "run" / "wandb" / name / f"run-{identity}.wandb").stat().st_size > 0
    assert not (here / "wandb").exists()
    assert (here / "run" / "metrics.csv").read_text().count("\n") == 12


def test_wandb_writes_into_the_run_after_a_change_of_directory(fit, here, monkeypatch):
    """The service of W&B is one a process, wherever that has moved since."""
    assert fit("--config", "logger/wandb", "--run_dir", "first")[0] == 0
    (here / "elsewhere").mkdir()
    shutil.copy(here / "tiny.yaml", here / "elsewhere")
    monkeypatch.chdir(here / "elsewhere")
    assert fit("--config", "logger/wandb", "--run_dir", "second")[0] == 0
    for folder in (here / "first", here / "elsewhere" / "second"):
        assert [path.stat().st_size > 0 for path in folder.glob("wandb/offline-run-*/*.wandb")] == [True]


def test_tensorboard_goes_on_in_one_folder(fit, here):
    accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="the extra `tensorboard` is not installed"
    )
    starts_of_one_run(fit, "logger/tensorboard")
    assert not list(here.glob("lightning_logs"))
    events = accumulator.EventAccumulator(str(here / "run" / "tensorboard"))
    events.Reload()
    assert {event.step for event in events.Scalars("train/loss")} == set(range(10))
    assert [path.name for path in (here / "run" / "tensorboard").iterdir() if path.is_dir()] == []


@pytest.mark.parametrize("value", ["false", "null", "true"])
def test_metrics_csv_is_always_written(value, fit, here):
    code, _ = fit("--trainer.logger", value, "--run_dir", "run", "--trainer.max_steps=2")
    assert code == 0
    assert len((here / "run" / "metrics.csv").read_text().splitlines()) >= 3
    assert not (here / "lightning_logs").exists()


def test_wandb_that_cannot_begin_refuses_a_first_start(fit, here, monkeypatch):
    """Online, and nobody is logged in."""
    monkeypatch.delenv("WANDB_MODE")
    monkeypatch.setenv("HOME", str(here))  # no key of the user's
    online = ["--trainer.logger.init_args.offline=false", "--trainer.logger.init_args.mode=online"]
    wandb.teardown()  # it keeps the environment of its first use, and would hand this one on to other tests
    code, out = fit("--config", "logger/wandb", *online, "--run_dir", "run")
    wandb.teardown()
    assert code == 2
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, out
    assert "W&B cannot begin its record: No API key" in errors[0]
    assert not (here / "run").exists()


def test_a_resumed_run_goes_on_without_wandb(fit, here):
    """A file lies where its folder belongs."""
    assert fit("--config", "logger/wandb", "--run_dir", "run", fails(9))[0] == 1
    shutil.rmtree(here / "run" / "wandb")
    (here / "run" / "wandb").touch()
    with pytest.warns(UserWarning, match="record of W&B is incomplete .it could not go on"):
        code, out = fit("--config", "logger/wandb", "--run_dir", "run")
    assert code == 0, out
    assert fit("--run_dir", "without")[0] == 0
    assert losses(here / "run") == losses(here / "without")


def losses(run_dir):
    with (run_dir / "metrics.csv").open() as file:
        return [row["train/loss"] for row in csv.DictReader(file)]
