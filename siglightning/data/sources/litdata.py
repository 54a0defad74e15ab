"""Sets that ``litdata.optimize`` wrote: exact streaming, from a folder or from a store."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from typing_extensions import override

from siglightning.data.images import BadSampleError, from_pillow
from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.rows import Columns, class_numbers, read_words
from siglightning.data.source import RawSample, Source, digest
from siglightning.data.sources.chunks import Chunks

_ENOUGH = 100  # samples, of which one can be read in any set that is of use


class LitDataSource(Source):
    """Samples of chunks, in their order, read by position.

    Args:
        chunks: where they are.
        columns: which key of a sample, as it was given to ``litdata.optimize``, holds what. The picture may be a file's
            content, a Pillow image, or uint8 ``[3, H, W]``.
        class_names: of the labels, in the order of their numbers.

    Raises:
        ValueError: a column is missing, or classes have no names.
    """

    def __init__(
        self, chunks: Chunks, columns: Columns | None = None, class_names: Sequence[str] | None = None
    ) -> None:
        self._chunks, self.columns = chunks, columns or Columns()
        if (self.columns.label is None) != (not class_names):
            raise ValueError(
                "`columns.label` says where a sample's class is, and `class_names` which classes there are, in the "
                f"order of their numbers: give both or neither, got {self.columns.label!r} and {class_names}."
            )
        self.class_names = list(class_names or ())
        self._numbers = class_numbers(self.class_names)
        self._starts = self.bounds = np.concatenate([[0], np.cumsum(chunks.rows, dtype=np.int64)])
        first = self._first_row()
        self._check_columns(first)
        self.one_label = self.columns.label is not None and not isinstance(first[self.columns.label], list)

    @override
    def __len__(self) -> int:
        return int(self._starts[-1])

    @override
    def key(self, index: int) -> str:
        """The chunk's name and the row in it, with a slash between; or what the column for it says."""
        if self.columns.key is not None:
            return str(self._row(index)[self.columns.key])
        chunk, number = self._place(index)
        return f"{self._chunks.names[chunk]}/{number}"

    @override
    def read(self, index: int) -> RawSample:
        row = self._row(index)
        return replace(read_words(self.columns, row.get, self._numbers), image=_picture(row.get(self.columns.image)))

    @property
    @override
    def fingerprint(self) -> str:
        """Of the index: names and sizes of the chunks, and when they were written."""
        return digest([repr((self._chunks.index, self.columns, self.class_names)).encode()])

    def _place(self, index: int) -> tuple[int, int]:
        chunk = int(np.searchsorted(self._starts, index, side="right")) - 1
        return chunk, index - int(self._starts[chunk])

    def _row(self, index: int) -> Mapping[str, Any]:
        return self._chunks.row(*self._place(index))

    def _first_row(self) -> Mapping[str, Any]:
        for index in range(min(_ENOUGH, len(self))):
            with suppress(BadSampleError):
                return self._row(index)
        raise ValueError(f"None of the first {_ENOUGH} of {len(self)} samples in {self._chunks.place} can be read.")

    def _check_columns(self, row: Mapping[str, Any]) -> None:
        missing = [name for name in self.columns.used() if name not in row]
        if missing:
            raise ValueError(
                f"Expected the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} in {self._chunks.place}, "
                f"which has {', '.join(map(str, row))}. Say with `columns` which one holds what."
            )


class LitDataDataModule(MapStyleDataModule):
    """Chunks that ``litdata.optimize`` wrote, from a folder or a store: exact streaming.

    The order is drawn here, ten chunks at a time, and any sample can be read by its position; litdata stores and
    fetches the chunks. So a run can be stopped and continued exactly, on any number of processes, also in the middle of
    an epoch.

    Args:
        train: folder or URL to train on.
        val: to validate on; ``None``: a share of ``train``, which then lies in all of its chunks.
        tests: name -> folder or URL.
        columns: which key of a sample holds what.
        class_names: of the labels, in the order of their numbers.
        cache_dir: local folder for chunks from a store; ``None``: that of litdata.
        cache_gib: largest size of the chunks there, for each of the sets; shared by the processes of a machine.
        storage_options: for the store, see litdata.
        others: of :class:`MapStyleDataModule`.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        tests: Mapping[str, str] | None = None,
        columns: Columns | None = None,
        class_names: Sequence[str] | None = None,
        cache_dir: str | None = None,
        cache_gib: float = 50.0,
        storage_options: dict[str, Any] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.train, self.val, self.tests = train, val, dict(tests or {})
        self.columns, self.named_classes = columns, class_names
        self.cache_dir, self.cache_gib, self.storage_options = cache_dir, cache_gib, storage_options

    @override
    def open_parts(self) -> Parts:
        val = None if self.val is None else self._open(self.val)
        return Parts(self._open(self.train), val, {name: self._open(place) for name, place in self.tests.items()})

    def _open(self, place: str) -> LitDataSource:
        chunks = Chunks(place, self.cache_dir, round(self.cache_gib * 2**30), self.storage_options)
        return LitDataSource(chunks, self.columns, self.named_classes)


def _picture(value: Any) -> bytes | Tensor:
    """A picture as it was handed to litdata: a file's content, an image of Pillow, or pixels."""
    if isinstance(value, Mapping):  # as Hugging Face writes it
        value = value.get("bytes")
    if isinstance(value, (bytes, bytearray, memoryview)):
        return bytes(value)
    if isinstance(value, Image.Image):
        return from_pillow(value)
    pixels = torch.as_tensor(value) if isinstance(value, (Tensor, np.ndarray)) else None
    if pixels is None or pixels.dtype != torch.uint8 or pixels.ndim != 3 or len(pixels) not in (1, 3):
        raise BadSampleError("no picture", f"a {type(value).__name__}; expected a file's content or uint8 [3, H, W]")
    return pixels.expand(3, -1, -1)
