"""Samples of tars on a disk, read by position."""

import os
import tarfile
from array import array
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from typing_extensions import override

from siglightning.data.images import BadSampleError
from siglightning.data.source import RawSample, Source, digest
from siglightning.data.sources.members import Members, check_classes, check_exist, shard_names, split_name

_OPEN_TARS = 16  # at a time in a process; an order in blocks reads ten
_BLOCK = 512


class TarSource(Source):
    """Samples of tars on a disk, in their order, read by position.

    The headers of all tars are read once by each process, which takes it a minute and a half for a million samples;
    pictures and texts stay where they are. A tar that ends too early gives the samples before the end, and one more
    that cannot be used, so that it is noticed.

    Args:
        paths: of the tars, uncompressed.
        members: which file of a sample holds what.
        class_names: of the labels, in the order of their numbers.

    Raises:
        ValueError: a tar is missing or compressed, none holds a sample, or classes have no names.
    """

    def __init__(
        self, paths: Sequence[str | Path], members: Members | None = None, class_names: Sequence[str] | None = None
    ) -> None:
        self.members = members or Members()
        self.class_names, self._numbers = check_classes(self.members, class_names)
        self.one_label = self.members.label is not None and not self.members.multi_label
        self._paths = [str(path) for path in paths]
        self._names = shard_names(self._paths)
        _check_positions(self._paths)
        self._suffixes = self.members.suffixes()
        tars = [_Headers(path, self.members) for path in self._paths]
        self._keys = pa.chunked_array([tar.keys for tar in tars]).combine_chunks()
        self._starts = self.bounds = _ends(np.array([len(tar.keys) for tar in tars]))
        self._cuts = {int(end) - 1: tar.cut for end, tar in zip(self._starts[1:], tars, strict=True) if tar.cut}
        self._first = _ends(np.concatenate([np.asarray(tar.counts) for tar in tars]))
        self._suffix = np.concatenate([np.asarray(tar.suffix) for tar in tars])
        self._offset = np.concatenate([np.asarray(tar.offset) for tar in tars])
        self._size = np.concatenate([np.asarray(tar.size) for tar in tars])
        self._open: dict[int, BinaryIO] = {}
        self._check({suffix for tar in tars for suffix in tar.others})

    @override
    def __len__(self) -> int:
        return len(self._keys)

    @override
    def key(self, index: int) -> str:
        """The tar's name and the sample's in it, with a slash between."""
        return f"{self._names[self._tar(index)]}/{self._keys[index]}"

    @override
    def read(self, index: int) -> RawSample:
        if index in self._cuts:
            raise BadSampleError("truncated tar", self._cuts[index])
        tar = self._tar(index)
        files = range(self._first[index], self._first[index + 1])
        return self.members.read({self._suffixes[self._suffix[n]]: self._content(tar, n) for n in files}, self._numbers)

    @property
    @override
    def fingerprint(self) -> str:
        """Of names and sizes: no text is read for it."""
        buffers = [buffer for buffer in self._keys.buffers() if buffer is not None]
        lists = (self._starts, self._first, self._suffix, self._size)
        known = [repr((self._names, self.members, list(self.class_names))).encode()]
        return digest([*known, *(memoryview(b).tobytes() for b in buffers), *(a.tobytes() for a in lists)])

    def _check(self, others: set[str]) -> None:
        """Refuse tars that hold other files than they should, before every sample turns out to be bad."""
        found = {self._suffixes[number] for number in np.unique(self._suffix)}
        lacks = self.members.lacking(found)
        if lacks:
            held = ", ".join(f".{suffix}" for suffix in sorted(found | others)[:20]) or "nothing"
            raise ValueError(
                f"Expected pictures with captions or labels in the tars, but {self._names[0]} and the others have "
                f"{lacks}: they hold {held}. Say with `members` which of these is what."
            )

    def _tar(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1

    def _content(self, tar: int, file: int) -> bytes:
        """Read at an offset: forked processes share a descriptor, and would share its position."""
        try:
            descriptor = self._descriptor(tar)
            content = os.pread(descriptor, int(self._size[file]), int(self._offset[file]))
        except OSError as error:
            raise BadSampleError("unreadable", f"{error.strerror}: {self._paths[tar]}") from error
        if len(content) < self._size[file]:
            raise BadSampleError("unreadable", f"{self._paths[tar]} has become shorter")
        return content

    def _descriptor(self, tar: int) -> int:
        handle = self._open.pop(tar, None) or open(self._paths[tar], "rb", buffering=0)  # noqa: SIM115  # stays open
        self._open[tar] = handle  # the last to be closed
        if len(self._open) > _OPEN_TARS:
            self._open.pop(next(iter(self._open))).close()
        return handle.fileno()

    def __getstate__(self) -> dict[str, Any]:
        """Loading processes that are not forked open files for themselves."""
        return {**self.__dict__, "_open": {}}


class _Headers:
    """Where the files of one tar lie.

    Attributes:
        keys: of its samples, in their order: an Arrow array.
        counts: files of each sample.
        suffix: of each file, its position among those that are read.
        offset: of each file's content.
        size: of each file, in bytes.
        others: suffixes of files that are not read.
        cut: where the tar ends too early; the last sample then stands for what is lost. Empty for a whole tar.
    """

    def __init__(self, path: str, members: Members) -> None:
        self.counts, self.suffix, self.offset, self.size = array("h"), array("h"), array("q"), array("q")
        self.others: set[str] = set()
        self.cut = ""
        self._numbers = {suffix: number for number, suffix in enumerate(members.suffixes())}
        self._names: list[str] = []
        self._seen: set[str] = set()
        with open(path, "rb") as file:
            end, is_whole = self._read(file)
        if not is_whole:
            self.cut = f"{path} ends or is damaged at byte {end:,}"
            if not self._names or not members.lacking(self._seen):
                self._begin(f"after {self._names[-1]}" if self._names else "from the beginning")
        self.keys = pa.array(self._names, pa.large_string())
        del self._names, self._seen

    def _read(self, file: BinaryIO) -> tuple[int, bool]:
        """Where the headers end, and whether they end as they should: with a block of zeros."""
        length, end = os.fstat(file.fileno()).st_size, 0
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                while (member := tar.next()) is not None and member.offset_data + member.size <= length:
                    tar.members = []  # type: ignore[attr-defined]  # which would grow with every file
                    self._add(member)
                    end = tar.offset
        except (tarfile.TarError, EOFError):
            return end, False
        file.seek(end)
        block = file.read(_BLOCK)
        return end, len(block) == _BLOCK and not any(block)

    def _add(self, member: tarfile.TarInfo) -> None:
        key, suffix = split_name(member.name)
        if not member.isreg() or not key:
            return
        if suffix not in self._numbers:
            self.others.add(suffix)
            return
        if not self._names or key != self._names[-1]:
            self._begin(key)
        if suffix not in self._seen:  # of two with one name, the first
            self._seen.add(suffix)
            self.counts[-1] += 1
            self.suffix.append(self._numbers[suffix])
            self.offset.append(member.offset_data)
            self.size.append(member.size)

    def _begin(self, key: str) -> None:
        self._names.append(key)
        self.counts.append(0)
        self._seen.clear()


def _check_positions(paths: Sequence[str]) -> None:
    """Raise ``ValueError`` for tars that are missing, or compressed so that nothing in them has a position."""
    check_exist(paths)
    packed = [path for path in paths if path.endswith((".gz", ".tgz", ".bz2", ".xz", ".zst"))]
    if packed:
        raise ValueError(
            f"Expected uncompressed tars, got {packed[0]}: unpack it (pictures are compressed already), or read it as "
            "a stream with `resampled: true`."
        )


def _ends(counts: NDArray[Any]) -> NDArray[np.int64]:
    """Where each of several stretches begins and the last one ends: int64 ``[N + 1]``."""
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
