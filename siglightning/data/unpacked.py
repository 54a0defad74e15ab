"""Pictures within Parquet, unpacked once into an Arrow file that is mapped into memory.

Parquet is compressed, and a file may hold all its pictures in one group of rows: one of them cannot be had without its
neighbours. Uncompressed in an Arrow file each lies where its offset says. Such a file costs disk, but no memory that
the system could not take back, and the processes of a machine share what they touch of it.
"""

import fcntl
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from siglightning.data.source import digest
from siglightning.runtime.files import atomic_write
from siglightning.runtime.processes import notice

_BATCH_BYTES = 2**22  # of pictures, written at a time
_BUFFER_BYTES = 2**20  # of the Parquet file, read at a time; without a buffer a whole group of rows is read
_SPARE_BYTES = 2**26  # left free on the disk


def default_folder() -> Path:
    """Where unpacked pictures lie unless a folder is given: ``siglightning/tables`` in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "siglightning" / "tables"


def unpacked_column(path: Path, column: str, folder: Path | None = None) -> pa.ChunkedArray:
    """A column of a Parquet file, memory-mapped from its unpacked copy.

    The copy is made by the first process that asks and replaced when the Parquet file has changed.

    Args:
        path: of the Parquet file.
        column: with pictures.
        folder: for the copy; ``None``: :func:`default_folder`.

    Raises:
        ValueError: the folder cannot be written, or its disk is too small.
    """
    folder = folder or default_folder()
    path, state = path.resolve(), path.stat()
    stem = digest([str(path).encode(), column.encode()])
    target = folder / f"{stem}-{digest([f'{state.st_size} {state.st_mtime_ns}'.encode()])}.arrow"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(folder / f"{stem}.lock") as alone:
            if not target.is_file():
                leftovers = folder.glob(f".{stem}-*.tmp") if alone else ()  # else another process may be writing it
                for outdated in [*folder.glob(f"{stem}-*.arrow"), *leftovers]:
                    outdated.unlink(missing_ok=True)
                _unpack(path, column, target)
    except OSError as error:
        raise ValueError(
            f"The pictures of {path} cannot be unpacked into {folder}: {error.strerror or error}. Give another "
            "folder with `cache_dir`, if the file is whole."
        ) from error
    return pa.ipc.open_file(pa.memory_map(str(target))).read_all()[column]


@contextmanager
def _one_at_a_time(lock: Path) -> Iterator[bool]:
    """Let the other processes of a run wait for the first, so that the work is done and the disk is used once.

    Yields:
        Whether they do; on a file system without locks each unpacks for itself, and the last one's file stays.
    """
    with lock.open("a") as file:
        alone = False
        with suppress(OSError):
            fcntl.flock(file, fcntl.LOCK_EX)
            alone = True
        yield alone


def _unpack(path: Path, column: str, target: Path) -> None:
    with pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        size = _uncompressed_bytes(file.metadata, column)
        free = shutil.disk_usage(target.parent).free
        if size + _SPARE_BYTES > free:
            raise ValueError(
                f"The pictures of {path} need {size / 1e9:.1f} GB unpacked, but {target.parent} has "
                f"{free / 1e9:.1f} GB free. Give another folder with `cache_dir`."
            )
        notice(f"Unpacking the pictures of {path} ({size / 1e6:,.0f} MB) into {target.parent}, once.")
        rows = max(1, _BATCH_BYTES * file.metadata.num_rows // max(1, size))
        with atomic_write(target) as sink, pa.ipc.new_file(sink, pa.schema([file.schema_arrow.field(column)])) as out:
            at_once = max(1, min(rows, file.metadata.num_rows))  # a part without rows is a file, too
            for batch in file.iter_batches(at_once, columns=[column], use_threads=False):
                out.write_batch(batch)


def _uncompressed_bytes(metadata: pq.FileMetaData, column: str) -> int:
    """Of all parts of a column: a struct of bytes and path is stored as two."""
    groups = (metadata.row_group(number) for number in range(metadata.num_row_groups))
    parts = (group.column(number) for group in groups for number in range(group.num_columns))
    return sum(part.total_uncompressed_size for part in parts if part.path_in_schema.split(".")[0] == column)
