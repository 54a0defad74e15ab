"""Checkpoint files that are whole, verified and free of code."""

import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch
from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from torch import Tensor
from typing_extensions import override

from siglightning.runtime.differences import require_same_state
from siglightning.runtime.files import atomic_write
from siglightning.runtime.migrations import FORMAT, KEY, migrated
from siglightning.runtime.sidecar import DamagedCheckpointError, Sidecar, sidecar_path, standing, verify

SUFFIX = ".ckpt"


class _HashingFile:
    """A file for ``torch.save`` that hashes what passes through it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.digest.update(data)
        self.size += len(data)
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()


class AtomicCheckpointIO(CheckpointIO):
    """Write checkpoints so that a name never stands for half a file; verify them before they are read.

    The file is streamed to a hidden neighbour, synced, described by a checksum beside its name, and renamed. The
    checksum comes before the name, and names what it replaces: a process killed between the two leaves no file that
    nobody can verify. The first file of each process is read back at once: what cannot be loaded without running
    code is found now, not when the run has to resume. Reading always uses ``weights_only=True``.
    """

    def __init__(self) -> None:
        self._proved_loadable = False

    @override
    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any | None = None
    ) -> None:
        """Write ``checkpoint`` to ``path`` and its checksum beside it.

        Raises:
            OSError: the disk is full or not writable. The file that stood at ``path`` before is untouched.
            TypeError: the checkpoint holds objects that could only be loaded by running code.
        """
        path, checkpoint = Path(path), checkpoint | {KEY: FORMAT}
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            hashing = _HashingFile(file)
            try:
                torch.save(checkpoint, hashing)  # type: ignore[arg-type]  # it needs write() and flush() only
            except RuntimeError as error:
                # torch closes its archive on the way out, which fails in its turn and hides the disk's own words.
                raise hashing.error or error from None
            file.flush()
            self._prove_loadable(Path(file.name), path)
            step, resumable = int(checkpoint.get("global_step", 0)), "optimizer_states" in checkpoint
            Sidecar(hashing.digest.hexdigest(), hashing.size, step, resumable, standing(path)).write(path)

    def _prove_loadable(self, written: Path, path: Path) -> None:
        if self._proved_loadable:
            return
        try:
            torch.load(written, map_location="meta", weights_only=True, mmap=True)
        except Exception as error:
            raise TypeError(
                f"{path.name} would hold objects that cannot be loaded safely. Let callbacks and modules save "
                f"tensors, numbers, strings, lists and dictionaries only. {_first_line(error)}"
            ) from error
        self._proved_loadable = True

    @override
    def load_checkpoint(
        self,
        path: str | os.PathLike[str],
        map_location: Callable[[Any, str], Any] | None = None,
        weights_only: bool | None = None,
    ) -> dict[str, Any]:
        """Verify and read a checkpoint.

        Args:
            path: the file. Without a checksum beside it, it is read unverified.
            map_location: as in ``torch.load``; default: the CPU.
            weights_only: ignored, a checkpoint may never run code.

        Raises:
            FileNotFoundError: there is no such file.
            DamagedCheckpointError: it is truncated, altered, or holds more than data.
            ValueError: a later release wrote it.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"There is no checkpoint {path}.")
        if sidecar_path(path).exists():
            verify(path)
        return migrated(_load(path, map_location or "cpu"), path)

    @override
    def remove_checkpoint(self, path: str | os.PathLike[str]) -> None:
        """Delete a checkpoint, then its checksum: the other way round a kill would leave one that looks damaged."""
        Path(path).unlink(missing_ok=True)
        sidecar_path(Path(path)).unlink(missing_ok=True)


def _load(path: Path, map_location: Any, mmap: bool = False) -> dict[str, Any]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            content = torch.load(path, map_location=map_location, weights_only=True, mmap=mmap)
    except OSError:
        raise
    except Exception as error:
        raise DamagedCheckpointError(
            f"{path} cannot be loaded: it is damaged, or holds objects that only running its code could restore. "
            f"{_first_line(error)}"
        ) from error
    if not isinstance(content, dict):
        raise DamagedCheckpointError(f"{path} holds a {type(content).__name__}, expected a dictionary of states.")
    return content


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:200]


@dataclass(frozen=True)
class Resolution:
    """What :func:`newest_intact` found.

    Attributes:
        path: the newest intact checkpoint, or ``None``.
        global_step: its optimizer steps.
        passed_over: why newer ones were not taken, newest first.
    """

    path: Path | None
    global_step: int
    passed_over: list[str]


def newest_intact(directory: Path) -> Resolution:
    """Find the checkpoint with the most steps that is whole and can be resumed from.

    Args:
        directory: searched for ``*.ckpt``, not recursively; may be missing.
    """
    passed_over = []
    candidates = []
    for path in sorted(directory.glob(f"*{SUFFIX}")):
        try:
            sidecar = Sidecar.read(path)
        except DamagedCheckpointError as error:
            passed_over.append(str(error))
            continue
        if sidecar.resumable:
            candidates.append((sidecar.global_step, path.stat().st_mtime_ns, path))
    for _, _, path in sorted(candidates, reverse=True):
        try:
            return Resolution(path, verify(path).global_step, passed_over)
        except DamagedCheckpointError as error:
            passed_over.append(str(error))
    return Resolution(None, 0, passed_over)


def best_intact(directory: Path) -> Path | None:
    """The whole checkpoint with the most steps among those that a run kept as its best, ``best-*.ckpt``."""
    for path in sorted(directory.glob(f"best-*{SUFFIX}"), reverse=True):
        try:
            verify(path)
        except DamagedCheckpointError:
            continue
        return path
    return None


def find_checkpoint(path: Path) -> Path:
    """The checkpoint file that a path stands for: a file itself; of a run directory its best, else its newest.

    Raises:
        ValueError: there is nothing there, or no checkpoint in the directory is intact.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(f"Expected a checkpoint file or the directory of a run, got {str(path)!r}: there is none.")
    folder = path / "checkpoints"
    found = newest_intact(folder)
    chosen = best_intact(folder) or found.path
    if chosen is None:
        reasons = f" ({' '.join(found.passed_over)})" if found.passed_over else ""
        raise ValueError(
            f"Expected a run with a checkpoint, got {path}, which has none that is intact{reasons}. Give the "
            "directory of a trained run, the one with config.yaml, or a checkpoint file."
        )
    return chosen


def require_resumable(path: Path) -> None:
    """Refuse a file of weights alone where training is to go on.

    Raises:
        ValueError: it is one.
    """
    if sidecar_path(path).exists() and not Sidecar.read(path).resumable:
        raise ValueError(
            f"Expected a checkpoint that training can go on from, got {path}, which holds weights alone. Give a "
            "step-*.ckpt of its run; best-*.ckpt is for validate, test and predict."
        )


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Names, shapes and types of a checkpoint's weights, without reading their values.

    Raises:
        DamagedCheckpointError: the file cannot be loaded, or holds no ``state_dict``.
    """
    state = _load(path, "meta", mmap=True).get("state_dict")
    if not isinstance(state, dict):
        raise DamagedCheckpointError(f"{path} holds no state_dict: it is not a checkpoint of a Lightning module.")
    return state


def read_weights(path: Path) -> dict[str, Any]:
    """A checkpoint's content, its weights under ``state_dict``, verified where a checksum lies beside it.

    Tensors are mapped from the file and read when they are used, so that optimizer states cost nothing.

    Raises:
        DamagedCheckpointError: the file cannot be loaded without running code, or holds no ``state_dict``.
    """
    if sidecar_path(path).exists():
        verify(path)
    content = migrated(_load(path, "cpu", mmap=True), path)
    if not isinstance(content.get("state_dict"), dict):
        raise DamagedCheckpointError(f"{path} holds no state_dict: it is not a checkpoint of a Lightning module.")
    return content


def require_same_model(model: Mapping[str, Tensor], path: Path) -> None:
    """Refuse a checkpoint file whose weights do not fit; see :func:`require_same_state`."""
    require_same_state(model, read_state_dict(path), str(path))
