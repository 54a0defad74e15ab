"""Files that are either whole or not there."""

import hashlib
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

_BLOCK = 1 << 20  # bytes read at a time when hashing
_TEMPORARY = re.compile(r"\..+\.\d+\.tmp")


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Open a temporary neighbour of ``path`` that takes its place when the block ends without an error.

    The neighbour lies in the same directory, hence on the same file system, so the final rename is atomic; a
    temporary directory elsewhere would make it a copy that a reader, or a full disk, can catch half done.

    Args:
        path: the final name; its directory must exist.

    Yields:
        A binary file to write to.

    Raises:
        OSError: the file cannot be written. Whatever ``path`` held before is untouched.
    """
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_directory(path.parent)


@contextmanager
def spared(what: str) -> Iterator[None]:
    """Let a run go on where a file that it can do without cannot be written, and warn.

    Args:
        what: the file, for the warning.
    """
    try:
        yield
    except OSError as error:
        warnings.warn(f"{what} was not written: {error}. The run goes on without it.", stacklevel=3)


def temporary_name(path: Path) -> Path:
    """The hidden name beside ``path`` under which its new content is written first."""
    return path.with_name(f".{path.name}.{os.getpid()}.tmp")


def is_temporary(path: Path) -> bool:
    """Whether a path has such a hidden name."""
    return _TEMPORARY.fullmatch(path.name) is not None


def remove_temporaries(directory: Path) -> None:
    """Delete what an earlier process, killed while it wrote, left behind in ``directory``."""
    for leftover in filter(is_temporary, directory.glob(".*.tmp")):
        leftover.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Replace the content of ``path`` atomically with UTF-8 text."""
    with atomic_write(path) as file:
        file.write(text.encode())


def sync_directory(directory: Path) -> None:
    """Make a rename in ``directory`` survive a power failure."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def file_sha256(path: Path) -> str:
    """SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()
