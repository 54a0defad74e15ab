"""The disk of the run directory becomes full, or read-only, while a run trains."""

import json
import subprocess

import pytest
from runs import NO_CALLBACKS, ONE, assert_same_run, callback, fit, undisturbed

from siglightning.cli import main
from siglightning.runtime.checkpoint import newest_intact

STEPS = 24
CONFIG = ONE.replace("max_steps: 6", f"max_steps: {STEPS}")


@pytest.fixture
def disk(tmp_path):
    """A file system of 40 MiB, room for four checkpoints; skips, saying why, where the machine forbids it."""
    path = tmp_path / "disk"
    path.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=40m", "tmpfs", path], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"mounting is not allowed here: {mounted.stderr.strip()}")
    yield path
    subprocess.run(["umount", "--lazy", "--recursive", path], check=True)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run with all the space that it needs, which saves every sixth step."""
    folder = tmp_path_factory.mktemp("space")
    (folder / "small.yaml").write_text(CONFIG)
    assert in_process(folder, folder / "whole") == 0
    return folder / "whole"


def in_process(folder, run_dir, *flags):
    arguments = ["--config", "quickstart", "--config", f"{folder}/small.yaml", "--checkpoint.every_n_steps=6"]
    return main(["fit", *arguments, "--trust_imports", "faulty", "--run_dir", str(run_dir), *flags])


def hidden(run_dir):
    return [path.name for path in run_dir.rglob(".*") if path.name != ".lock"]


def test_training_goes_on_until_there_is_space_again(whole, disk, tmp_path, capfd, observe):
    """Two saves fail; rows of metrics wait as well: more of them than what was the file's last page has room for."""
    note = tmp_path / "time"
    fault = callback("FillDisk", step=5, until=16, ballast=str(disk / "ballast"), note=str(note))
    with pytest.warns(UserWarning, match=r"was not (saved|written)") as warned:
        code = in_process(whole.parent, disk / "run", fault)
    assert code == 0, "".join(capfd.readouterr())
    texts = [str(warning.message) for warning in warned if "No space left on device" in str(warning.message)]
    for step in (6, 12):
        assert sum(f"The checkpoint of step {step} was not saved: " in text for text in texts) == 1
    assert sum("metrics.csv was not written" in text for text in texts) == 1
    assert json.loads((disk / "run" / "exit.json").read_text())["status"] == "done"
    assert_same_run(disk / "run", whole)
    assert hidden(disk / "run") == []
    saved = disk / "run" / "checkpoints" / "step-00000018.ckpt"  # the first one with space again
    observe(
        "disk full (tmpfs) from step 5 to step 16, saves due at steps 6 and 12",
        expected="training goes on with warnings, ends 0 when space comes back, nothing is lost",
        observed="one warning a save and one for metrics.csv; exit 0; weights, optimizer, metrics equal to the bit",
        seconds=saved.stat().st_mtime - note.stat().st_mtime,
    )


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["full", "read-only"])
def test_after_three_saves_the_run_ends_and_goes_on_later(disk, observe, kind):
    """The fault comes in step 5, after the checkpoints of steps 2 and 4; the saves of 6, 8 and 10 fail."""
    whole, run_dir, note = undisturbed(disk.parent, config=CONFIG), disk / "run", disk.parent / "time"
    there = "--run_dir=disk/run"  # its log stays here
    if kind == "full":
        fault = callback("FillDisk", step=5, ballast=str(disk / "ballast"), note=str(note))
    else:
        fault = callback("MakeReadOnly", step=5, folder=str(run_dir), note=str(note))
    ended = fit(disk.parent, "run", there, fault, config=CONFIG)
    seconds = ended.ended - note.stat().st_mtime
    assert ended.code == 1, ended.output
    (error,) = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    said = "No space left on device" if kind == "full" else "Read-only file system"
    assert f"could not be saved, 3 times in a row, the last at step 10: [Errno {28 if kind == 'full' else 30}]" in error
    assert said in error
    assert f"Make space on the disk of {run_dir}, or make it writable again" in error
    assert "the same command goes on from the newest one" in error
    assert "Traceback" not in ended.output
    found = newest_intact(run_dir / "checkpoints")
    assert (found.global_step, found.passed_over, hidden(run_dir)) == (4, [], [])
    refused = fit(disk.parent, "run", there, NO_CALLBACKS, config=CONFIG)  # nothing has been mended yet
    assert refused.code == 2, refused.output
    assert said in refused.output
    assert (found.global_step, hidden(run_dir)) == (4, [])
    mend(kind, disk, run_dir)
    rest = fit(disk.parent, "run", there, NO_CALLBACKS, config=CONFIG)
    assert rest.code == 0, rest.output
    assert "Resuming disk/run from step 4" in rest.output
    assert_same_run(run_dir, whole)
    observe(
        f"run directory {kind} from step 5 on",
        expected="ends after three failed saves, exit not 0, saying what to do; earlier checkpoints intact",
        observed="exit 1 at step 10 with the remedy; exit 2 while unmended; then resumed from step 4 to the bit",
        seconds=seconds,
    )


def mend(kind, disk, run_dir):
    if kind == "full":
        (disk / "ballast").unlink()
    else:
        subprocess.run(["umount", run_dir], check=True)


def test_a_run_without_its_last_state_is_not_done(whole, disk, tmp_path, capfd):
    fault = callback("FillDisk", step=20, ballast=str(disk / "ballast"), note=str(tmp_path / "time"))
    with pytest.warns(UserWarning, match=r"was not saved"):
        code = in_process(whole.parent, disk / "run", fault)
    assert code == 1
    assert f"could not be saved, that of step {STEPS}, the last one: [Errno 28]" in capfd.readouterr().err
    (disk / "ballast").unlink()
    assert in_process(whole.parent, disk / "run", NO_CALLBACKS) == 0
    assert_same_run(disk / "run", whole)
