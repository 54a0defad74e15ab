"""The run directory: where everything of one run lies, and who may write there.

A directory belongs to one run. A second start in it continues the run or is refused; nothing is overwritten::

    config.yaml  config.resume-1.yaml ...   the resolved configuration of each start
    env.json     env.resume-1.json ...      versions, commit and hardware of each start
    metrics.csv  epochs.csv                 one row a logged step, one row an epoch
    model.json                              what is trained
    init_from.json                          whose weights the run began with, if another run's
    checkpoints/                            step-00000500.ckpt with its .sha256
    figures/  samples/  tensorboard/  wandb/  what callbacks and loggers add
    exit.json                               how the last start ended
    validate/  test/  predict/              one sub-directory for each separate evaluation
"""

import fcntl
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import IO, Literal

from siglightning.runtime.files import is_temporary, remove_temporaries

ResumeMode = Literal["auto", "must", "never"]


@dataclass(frozen=True)
class RunDir:
    """Names inside one run directory.

    Attributes:
        root: the directory.
    """

    root: Path

    @property
    def config(self) -> Path:
        """Resolved configuration of the first start."""
        return self.root / "config.yaml"

    @property
    def metrics(self) -> Path:
        """Logged scalars, one row a step."""
        return self.root / "metrics.csv"

    @property
    def checkpoints(self) -> Path:
        """Directory of the checkpoints from which the run resumes."""
        return self.root / "checkpoints"

    @property
    def exit(self) -> Path:
        """How the last start ended."""
        return self.root / "exit.json"

    @property
    def init_from(self) -> Path:
        """Whose weights the run began with, and which of them."""
        return self.root / "init_from.json"

    @property
    def wandb_id(self) -> Path:
        """Identity of the run for Weights & Biases, the same in every start."""
        return self.root / "wandb_id.txt"

    @property
    def lock(self) -> Path:
        """Locked by the process that writes here."""
        return self.root / ".lock"

    def config_of(self, start: int) -> Path:
        """Resolved configuration of start number ``start``; 0 is the first, 1 the first resume."""
        return self.config if start == 0 else self.root / f"config.resume-{start}.yaml"

    def environment_of(self, start: int) -> Path:
        """Environment record of start number ``start``."""
        return self.root / ("env.json" if start == 0 else f"env.resume-{start}.json")

    def last_start(self) -> int:
        """Number of the newest start that left a configuration; -1 when there is none."""
        resumes = (re.fullmatch(r"config\.resume-(\d+)\.yaml", entry.name) for entry in self.root.glob("config.*"))
        numbers = [int(match[1]) for match in resumes if match]
        return max(numbers, default=0 if self.config.exists() else -1)

    def is_unused(self) -> bool:
        """Whether the directory is missing, or holds no more than a start leaves that was killed before its record.

        That is a lock, an identity for W&B and files half written; and separate evaluations, which may be there.
        """
        if not self.root.exists():
            return True
        return all(entry == self.wandb_id or is_temporary(entry) for entry in self._contents())

    def tidy(self) -> None:
        """Delete what killed processes left: files half written, and checksums of checkpoints that got no name."""
        for folder in (self.root, *(entry for entry in self._contents() if entry.is_dir())):
            remove_temporaries(folder)
        for checksum in self.checkpoints.glob("*.sha256"):
            if not checksum.with_suffix("").exists():
                checksum.unlink(missing_ok=True)

    def clear(self) -> None:
        """Delete everything but the lock and separate evaluations."""
        for entry in list(self._contents()):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                entry.unlink(missing_ok=True)

    def evaluation(self, name: str) -> "RunDir":
        """The first unused directory for a separate evaluation: ``test``, ``test-2`` and so on."""
        candidates = (self.root / (name if number == 1 else f"{name}-{number}") for number in count(1))
        return RunDir(next(path for path in candidates if not path.exists()))

    def _contents(self) -> Iterator[Path]:
        kept = re.compile(rf"{re.escape(self.lock.name)}|(validate|test|predict)(-\d+)?")
        return (entry for entry in self.root.iterdir() if not kept.fullmatch(entry.name))


@dataclass
class Claim:
    """The right of this process to write into a run directory.

    Attributes:
        run_dir: the directory.
        made: the topmost directory that this claim created; ``None`` when the run directory was there before.
        was_unused: whether the run directory was empty before.
        written: files that this start added.
    """

    run_dir: RunDir
    made: Path | None = None
    was_unused: bool = False
    written: list[Path] = field(default_factory=list)
    _lock: IO[str] | None = None

    def release(self) -> None:
        """Let other processes use the directory."""
        if self._lock is not None:
            self._lock.close()
            self._lock = None

    def withdraw(self) -> None:
        """Leave no trace of a start that ended before any work: the directory is as it was found."""
        self.release()
        if self.made is not None:
            shutil.rmtree(self.run_dir.root, ignore_errors=True)
            self._remove_made_parents(self.made)
            return
        if self.was_unused:
            self.run_dir.clear()
        for path in self.written:
            path.unlink(missing_ok=True)
        self.run_dir.lock.unlink(missing_ok=True)

    def _remove_made_parents(self, topmost: Path) -> None:
        for parent in self.run_dir.root.parents:
            if not parent.is_relative_to(topmost) or any(parent.iterdir()):
                return
            parent.rmdir()


def claim(run_dir: RunDir) -> Claim:
    """Create the directory where needed, prove that it can be written, and lock it for this process.

    Raises:
        ValueError: the directory cannot be created or written, or another process is writing into it.
    """
    root = run_dir.root
    try:
        missing = [path for path in (root, *root.parents) if not path.exists()]
        was_unused = run_dir.is_unused()
        root.mkdir(parents=True, exist_ok=True)
        lock = run_dir.lock.open("w")
    except OSError as error:
        raise _not_writable(root, error) from error
    try:
        # A POSIX record lock: released by the kernel when the process dies, never inherited by loader workers.
        fcntl.lockf(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise ValueError(
            f"Another process is training in {root}. Wait until it ends, or choose another --run_dir."
        ) from error
    claimed = Claim(run_dir, made=missing[-1] if missing else None, was_unused=was_unused, _lock=lock)
    try:
        os.write(lock.fileno(), f"{os.getpid()}\n".encode())
        run_dir.tidy()
        with tempfile.TemporaryFile(dir=run_dir.checkpoints if run_dir.checkpoints.exists() else root):
            pass
    except OSError as error:
        claimed.withdraw()
        raise _not_writable(root, error) from error
    return claimed


def _not_writable(root: Path, error: OSError) -> ValueError:
    failed, checkpoints = Path(error.filename or root).absolute(), root / "checkpoints"
    inner = f": {checkpoints}" if checkpoints.absolute() in (failed, failed.parent) else ""
    return ValueError(
        f"The run directory {root} cannot be written ({error.strerror}{inner}). "
        "Choose another one with --run_dir, or make it writable."
    )
