"""A run directory that this user may not write: refused before training, and when it happens in mid-run."""

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from runs import NO_CALLBACKS, ONE, callback, fit

NOBODY = 10001  # the image's user; any that does not exist here
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(os.getuid() != 0, reason="only root can start a process of another user"),
    pytest.mark.skipif(shutil.which("setpriv") is None, reason="no `setpriv` command (Debian package util-linux)"),
]
PREFIX = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups"]


@pytest.fixture
def there():
    """A working directory that everybody may enter, unlike pytest's; nobody's own."""
    python = subprocess.run([*PREFIX, sys.executable, "-c", "import siglightning"], capture_output=True, check=False)
    if python.returncode:
        pytest.skip("another user may not read this Python")
    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        os.chown(folder, NOBODY, NOBODY)
        yield Path(folder)


def start(folder, *flags):
    """As the user that does not exist: what it caches goes into the folder, too."""
    return fit(folder, "run", *flags, config=ONE, prefix=PREFIX, HOME=str(folder))


def of_another_user(folder):
    (folder / "run").mkdir(mode=0o755)


def read_only(folder):
    (folder / "run").mkdir(mode=0o555)
    os.chown(folder / "run", NOBODY, NOBODY)


def within_what_is_not_ours(folder):
    os.chown(folder, 0, 0)


def checkpoints_of_another_user(folder):
    assert start(folder).code == 0
    (folder / "run" / "exit.json").unlink()
    os.chown(folder / "run" / "checkpoints", 0, 0)


def contents(folder):
    """What lies in the run directory, but for its lock."""
    return sorted(str(path) for path in (folder / "run").rglob("*") if path.name != ".lock")


@pytest.mark.parametrize("kind", [of_another_user, read_only, within_what_is_not_ours, checkpoints_of_another_user])
def test_it_is_refused_before_training(there, observe, kind):
    kind(there)
    before = contents(there)
    ended = start(there)
    assert ended.code == 2, ended.output
    (error,) = [line for line in ended.output.splitlines() if line.startswith("error: ")]
    assert "The run directory run cannot be written (Permission denied" in error
    assert "Choose another one with --run_dir, or make it writable." in error
    assert ("run/checkpoints" in error) == (kind is checkpoints_of_another_user)
    assert "Traceback" not in ended.output
    assert contents(there) == before
    observe(
        f"run directory not writable for this user (uid {NOBODY}): {kind.__name__.replace('_', ' ')}",
        expected="exit 2 before training, the path and the remedy in the message",
        observed="exit 2 before training, one line with both, nothing changed",
        seconds=ended.seconds,
    )


def test_it_becomes_read_only_in_mid_run(there, observe):
    """Of 6 steps with a save every second one, those of 4 and 6 fail, and so does the second try of 6."""
    note = there / "time"
    ended = start(there, callback("Lock", step=3, folder="run", note=str(note)))
    assert ended.code == 1, ended.output
    assert "3 times in a row, the last at step 6: [Errno 13] Permission denied" in ended.output
    assert "Traceback" not in ended.output
    assert [path.name for path in (there / "run" / "checkpoints").glob("*.ckpt")] == ["step-00000002.ckpt"]
    for path in (there / "run", there / "run" / "checkpoints"):
        path.chmod(0o755)
    rest = start(there, NO_CALLBACKS)
    assert rest.code == 0, rest.output
    assert "Resuming run from step 2" in rest.output
    observe(
        f"run directory loses its write permission in mid-run (uid {NOBODY})",
        expected="warnings, then an end with exit not 0 that says what to do; earlier checkpoint intact",
        observed="exit 1 with the remedy after the last save failed; resumed from the checkpoint before",
        seconds=ended.ended - note.stat().st_mtime,
    )
