"""Who may write into a run directory, and what a second start there means."""

import json
import subprocess
import sys

import pytest
import torch

from siglightning.runtime.checkpoint import AtomicCheckpointIO
from siglightning.runtime.exits import ExitCode, ExitRecord, read_exit
from siglightning.runtime.files import temporary_name
from siglightning.runtime.rundir import RunDir, claim
from siglightning.runtime.start import Limits, decide_start


@pytest.fixture
def run_dir(tmp_path):
    return RunDir(tmp_path / "runs" / "first")


def train(run_dir, *steps, status=None, max_steps=10):
    """What a run leaves behind."""
    run_dir.checkpoints.mkdir(parents=True, exist_ok=True)
    run_dir.config.write_text(f"trainer: {{max_steps: {max_steps}, max_epochs: null}}\n")
    for step in steps:
        content = {"state_dict": {"a": torch.zeros(1)}, "optimizer_states": [], "global_step": step}
        AtomicCheckpointIO().save_checkpoint(content, run_dir.checkpoints / f"step-{step}.ckpt")
    if status is not None:
        ExitRecord.of(status, max(steps, default=0), 1.0).write(run_dir.exit)


LOCKER = """
import sys
from pathlib import Path
from siglightning.runtime.files import temporary_name
from siglightning.runtime.rundir import RunDir, claim
claimed = claim(RunDir(Path(sys.argv[1])))
print("locked", flush=True)
sys.stdin.readline()
"""


def test_two_processes_never_share_a_directory(run_dir):
    """The lock dies with its process, however that ends."""
    holder = subprocess.Popen(
        [sys.executable, "-c", LOCKER, str(run_dir.root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout.readline() == "locked\n"
    with pytest.raises(ValueError, match="Another process is training in"):
        claim(run_dir)
    holder.kill()
    holder.wait()
    claim(run_dir).release()


def test_withdrawing_removes_what_was_made_and_no_more(tmp_path, run_dir):
    claimed = claim(run_dir)
    (run_dir.root / "wandb").mkdir()
    (run_dir.root / "wandb" / "log").write_text("x")
    claimed.withdraw()
    assert list(tmp_path.iterdir()) == []

    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "other").mkdir()
    claim(run_dir).withdraw()
    assert [path.name for path in (tmp_path / "runs").iterdir()] == ["other"]

    train(run_dir, 5)
    before = sorted(run_dir.root.rglob("*"))
    claimed = claim(run_dir)
    added = run_dir.config_of(1)
    added.write_text("x")
    claimed.written.append(added)
    claimed.withdraw()
    assert sorted(run_dir.root.rglob("*")) == before


def test_unused_directories_begin_a_run(run_dir):
    for _ in range(2):
        for mode in ("auto", "never"):
            assert decide_start(run_dir, mode, Limits()).checkpoint is None
        with pytest.raises(ValueError, match="empty or missing"):
            decide_start(run_dir, "must", Limits())
        run_dir.root.mkdir(parents=True, exist_ok=True)
        (run_dir.root / ".lock").write_text("")
        (run_dir.root / "test-2").mkdir(exist_ok=True)


def test_what_a_killed_start_leaves_is_tidied_and_no_run(tmp_path, run_dir):
    """Killed before its configuration was written: the same command begins the run."""
    (run_dir.root / "tables").mkdir(parents=True)
    for path in (run_dir.config, run_dir.metrics):
        temporary_name(path).write_text("half")
    temporary_name(run_dir.root / "tables" / "retrieval.csv").write_text("half")
    claim(run_dir).release()
    (run_dir.root / "tables").rmdir()
    temporary_name(run_dir.config).write_text("half")
    run_dir.wandb_id.write_text("0123abcd\n")
    assert decide_start(run_dir, "auto", Limits()).number == 0
    (run_dir.root / ".notes.tmp").write_text("mine")
    claim(run_dir).release()
    assert sorted(path.name for path in run_dir.root.iterdir()) == [".lock", ".notes.tmp", "wandb_id.txt"]
    with pytest.raises(ValueError, match=r"no config\.yaml"):
        decide_start(run_dir, "auto", Limits())


def test_a_checksum_without_its_checkpoint_is_removed(run_dir):
    train(run_dir, 3, 6)
    (run_dir.checkpoints / "step-6.ckpt").unlink()
    claim(run_dir).release()
    assert sorted(path.name for path in run_dir.checkpoints.iterdir()) == ["step-3.ckpt", "step-3.ckpt.sha256"]


def test_an_unfinished_run_goes_on(run_dir):
    train(run_dir, 3, 6, status=ExitCode.BUG)
    for mode in ("auto", "must"):
        start = decide_start(run_dir, mode, Limits(10))
        assert (start.number, start.global_step) == (1, 6)
        assert start.checkpoint == run_dir.checkpoints / "step-6.ckpt"
    run_dir.config_of(1).write_text("trainer: {}")
    run_dir.config_of(2).write_text("trainer: {}")
    assert decide_start(run_dir, "auto", Limits(10)).number == 3
    with pytest.raises(ValueError, match="forbids to continue"):
        decide_start(run_dir, "never", Limits(10))


@pytest.mark.parametrize(
    ("old", "new", "goes_on"),
    [
        (Limits(10), Limits(10), False),
        (Limits(10), Limits(9), False),
        (Limits(10), Limits(11), True),
        (Limits(10), Limits(-1, 3), True),
        (Limits(-1, 3), Limits(-1, 3), False),
        (Limits(-1, 3), Limits(-1, 4), True),
        (Limits(-1, 3), Limits(-1, None), True),
        (Limits(-1, -1), Limits(10, 3), False),
    ],
)
def test_a_finished_run_goes_on_only_when_it_may_be_longer(run_dir, old, new, goes_on):
    train(run_dir, 10, status=ExitCode.DONE)
    run_dir.config.write_text(json.dumps({"trainer": {"max_steps": old.max_steps, "max_epochs": old.max_epochs}}))
    if goes_on:
        assert decide_start(run_dir, "auto", new).global_step == 10
    else:
        with pytest.raises(ValueError, match=r"finished run.*another --run_dir.*larger --trainer.max_steps"):
            decide_start(run_dir, "auto", new)


def test_damage_everywhere_is_refused(run_dir):
    train(run_dir, 3)
    (run_dir.checkpoints / "step-3.ckpt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"No checkpoint in .* is intact: .*truncated"):
        decide_start(run_dir, "auto", Limits())


def test_foreign_directories_are_refused(run_dir):
    run_dir.root.mkdir(parents=True)
    (run_dir.root / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"no config.yaml, so it is not a run directory"):
        decide_start(run_dir, "auto", Limits())


def test_the_exit_record_is_read_back(run_dir):
    run_dir.root.mkdir(parents=True)
    assert read_exit(run_dir.exit) is None
    ExitRecord.of(ExitCode.NOT_FINITE, 7, 1.26, "loss is nan").write(run_dir.exit)
    record = read_exit(run_dir.exit)
    assert record.pop("finished_at").endswith("+00:00")
    assert record == {
        "status": "not finite",
        "exit_code": 3,
        "global_step": 7,
        "seconds": 1.3,
        "message": "loss is nan",
    }
    run_dir.exit.write_text("{")
    assert read_exit(run_dir.exit) is None
