"""The file in which W&B keeps a run, ``run-ID.wandb``: is it whole, and back to the state at a checkpoint.

Records (protocol buffers of ``wandb.proto``) stand in the log format of LevelDB: blocks of 32 KiB, of which no part of
a record crosses an end; each part has a head of checksum, length and kind. Seven bytes of W&B's own come first. Read
with wandb 0.31, which has no reader for Python.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from siglightning.runtime.dashboard import GLOBAL_STEP
from siglightning.runtime.files import atomic_write

_MAGIC = b":W&B"
_START, _BLOCK = 7, 32768  # bytes: W&B's head, a block
_HEAD = struct.Struct("<IHB")
_WHOLE, _FIRST, _LAST = 1, 2, 4  # kinds of parts; 3 is one in the middle


class Entry(NamedTuple):
    """A record and where it begins, in bytes."""

    start: int
    record: Any


def read_entries(path: Path, start: int = 0) -> Iterator[Entry]:
    """The records of a file, up to the first that is not whole.

    Args:
        path: a ``.wandb`` file.
        start: begin with the first record at or after this byte, the first of a block.

    Raises:
        ValueError: the file is none of W&B.
    """
    from wandb.proto import wandb_internal_pb2  # takes a while, and only runs with W&B need it

    with path.open("rb") as file:
        if file.read(_START)[:4] != _MAGIC:
            raise ValueError(f"Expected a file of W&B, got {path}, which begins otherwise.")
        begin, parts = -1, b""
        for position, kind, body in _parts(file, max(start, _START)):
            if kind in (_WHOLE, _FIRST):
                begin, parts = position, b""
            parts += body
            if kind in (_WHOLE, _LAST) and begin >= 0:
                yield Entry(begin, wandb_internal_pb2.Record.FromString(parts))
                begin = -1


def history_row(record: Any) -> dict[str, Any]:
    """What a record logs, by key; nothing for records of other kinds. Keys of parts are joined by dots."""
    if record.WhichOneof("record_type") != "history":
        return {}
    items = record.history.item
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def is_whole(path: Path) -> bool:
    """Whether the file goes on to the record with which W&B ends a run."""
    last_block = max(0, path.stat().st_size - 1) // _BLOCK
    kind = None
    for entry in read_entries(path, max(0, last_block - 1) * _BLOCK):
        kind = entry.record.WhichOneof("record_type")
    return bool(kind == "exit")


def cut_offline_runs(folder: Path, step: int) -> list[Path]:
    """Drop what offline runs recorded from ``step`` on, as ``metrics.csv`` drops it when a run resumes.

    A file ends before the first row of that step or a later one. W&B marks files that it has sent to its server by a
    neighbour ``.synced``; these stay as they are.

    Args:
        folder: with ``offline-run-*``, of one run.
        step: optimizer steps of the checkpoint.

    Returns:
        Files that could not be cut, with later rows in them.
    """
    left = []
    for path in sorted(folder.glob("offline-run-*/run-*.wandb")):
        size = _first_later(path, step)
        if size is None:
            continue
        if path.with_name(path.name + ".synced").exists():
            left.append(path)
            continue
        content = path.read_bytes()[:size]
        with atomic_write(path) as file:  # another file: what W&B still writes into the old one goes with it
            file.write(content)
    return left


def _first_later(path: Path, step: int) -> int | None:
    """Where the first row of a step or a later one begins; ``None`` where there is none, nor anything to be read."""
    try:
        rows = ((entry.start, history_row(entry.record)) for entry in read_entries(path))
        return next((start for start, row in rows if row.get(GLOBAL_STEP, -1) >= step), None)
    except ValueError:  # a start that was killed, or met a full disk, before it had written its head
        return None


def _parts(file: BinaryIO, start: int) -> Iterator[tuple[int, int, bytes]]:
    """Parts of records: where they begin, kind and content; the first that is cut short or damaged ends them."""
    file.seek(start)
    position = start
    while block := file.read(_BLOCK - position % _BLOCK):
        place = 0
        while place + _HEAD.size <= len(block):
            checksum, length, kind = _HEAD.unpack_from(block, place)
            body = block[place + _HEAD.size : place + _HEAD.size + length]
            if len(body) < length or zlib.crc32(body, zlib.crc32(bytes([kind]))) != checksum:
                return
            yield position + place, kind, body
            place += _HEAD.size + length
        position += len(block)
