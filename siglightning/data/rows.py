"""Samples that are the rows of an Arrow table: which column holds what, and how a row is read."""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from typing_extensions import override

from siglightning.data.images import BadSampleError
from siglightning.data.source import RawSample, Source, digest

_ROWS_AT_ONCE = 2**16  # of the fingerprint: it then does not depend on how a file divides its rows


@dataclass(frozen=True)
class Columns:
    """Which column of a table holds what.

    Attributes:
        image: a path, or a picture file's content, or (as Hugging Face writes it) a struct with ``bytes``.
        captions: columns with a caption, or a list of captions, each; none for a table of labels.
        label: a class, or a list of classes, as words or numbers; ``None`` for a table of captions.
        key: what names the sample; ``None``: the path of the picture, or the number of the row.
        language: the language of a row's captions, or of each of its list of captions.
        weights: how often a column's captions are chosen in training, by its name; columns not named have weight 1.
    """

    image: str = "image"
    captions: Sequence[str] = ("caption",)
    label: str | None = None
    key: str | None = None
    language: str | None = None
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        unknown = set(self.weights) - set(self.captions)
        if unknown or any(not weight >= 0 for weight in self.weights.values()):
            raise ValueError(
                f"`columns.weights` must give weights of at least 0 to some of {list(self.captions)}, got "
                f"{dict(self.weights)}."
            )

    def used(self) -> list[str]:
        """All of them, each once."""
        named = [self.image, *self.captions, self.label, self.key, self.language]
        return list(dict.fromkeys(name for name in named if name is not None))

    def check(self, names: Sequence[str], where: object) -> None:
        """Raises ``ValueError`` unless all of them are among the ``names`` of a table."""
        missing = [name for name in self.used() if name not in names]
        if missing:
            raise ValueError(
                f"Expected the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} in {where}, which has "
                f"{', '.join(names)}. Say with `columns` which one holds what."
            )


class RowSource(Source):
    """Rows of a table, in their order.

    A sample's key is what ``columns.key`` holds, else the path of its picture where that tells pictures apart, else
    the number of its row.

    Args:
        table: in memory, or memory-mapped where it holds pictures.
        columns: which column holds what.
        image_root: folder that paths begin at.
        class_names: of the labels, for numbers in the table or to fix their order; ``None``: all words that occur,
            sorted.
        where: what to call the table in errors.
        bytes_are_paths: whether bytes in the column of pictures are a path, as where a CSV is read as bytes.

    Raises:
        ValueError: a column is missing, the table is empty, a row lacks its language, or a label is unknown.
    """

    def __init__(
        self,
        table: pa.Table,
        columns: Columns,
        image_root: str | Path,
        class_names: Sequence[str] | None = None,
        *,
        where: object = "the table",
        bytes_are_paths: bool = False,
    ) -> None:
        columns.check(table.column_names, where)
        if not len(table):
            raise ValueError(f"Expected at least one row in {where}, found none.")
        self.columns, self._table, self._where = columns, table, where
        self._image_root, self._bytes_are_paths = Path(image_root), bytes_are_paths
        self._names_in = columns.key or self._column_of_paths()
        self._label_numbers: dict[Any, int] = {}
        if columns.language is not None:
            self._count_languages(table[columns.language])
        if columns.label is not None:
            self._name_classes(table[columns.label], class_names)

    @override
    def __len__(self) -> int:
        return int(self._table.num_rows)

    @override
    def key(self, index: int) -> str:
        if self._names_in is None:
            return str(index)
        scalar = self._table[self._names_in][index]  # a struct's path alone is read, not the picture beside it
        name = scalar["path"] if isinstance(scalar, pa.StructScalar) and scalar.is_valid else scalar
        try:
            return _text(name.as_py(), errors="replace") or str(index)
        except UnicodeDecodeError:
            return str(index)

    @override
    def read(self, index: int) -> RawSample:
        words = read_words(self.columns, lambda name: self._value(name, index), self._label_numbers)
        return replace(words, image=self._image(index))

    @override
    def class_counts(self, rows: NDArray[np.int64]) -> NDArray[np.int64] | None:
        if self.columns.label is None:
            return None
        column = self._table[self.columns.label].take(pa.array(rows))
        counts = np.zeros(len(self.class_names), dtype=np.int64)
        for each in pc.value_counts(pc.list_flatten(column) if is_list(column.type) else column).to_pylist():
            number = self._label_numbers.get(_word(each["values"]))
            if number is not None:  # neither empty nor NaN, which equals nothing
                counts[number] += each["counts"]
        return counts

    @property
    @override
    def row_labels(self) -> NDArray[np.int64] | None:
        if self.columns.label is None or not self.one_label:
            return None
        coded = self._table[self.columns.label].combine_chunks().dictionary_encode()
        numbers = [self._label_numbers[_word(value)] for value in coded.dictionary.to_pylist()]
        found: NDArray[np.int64] = np.array(numbers)[coded.indices.to_numpy(zero_copy_only=False)]
        return found

    @property
    @override
    def fingerprint(self) -> str:
        settings = repr((self.columns, list(self.class_names)))
        return digest([str(len(self)).encode(), settings.encode(), *self._words()])

    def _words(self) -> Iterator[pa.Buffer]:
        """All columns but the pictures, some rows at a time."""
        names = [name for name in self.columns.used() if name != self.columns.image or self._names_paths]
        words = self._table.select(names).replace_schema_metadata()
        for first in range(0, len(words), _ROWS_AT_ONCE):
            sink, rows = pa.BufferOutputStream(), words.slice(first, _ROWS_AT_ONCE).combine_chunks()
            with pa.ipc.new_stream(sink, rows.schema) as stream:
                stream.write_table(rows)
            yield sink.getvalue()

    @property
    def _names_paths(self) -> bool:
        """Whether pictures lie beside the table and not within it."""
        return self._bytes_are_paths or not holds_pictures(self._table.schema, self.columns.image)

    def _column_of_paths(self) -> str | None:
        """The column of pictures where it names them, too: as paths, or beside their content if no two are alike."""
        column = self._table[self.columns.image]
        if not pa.types.is_struct(column.type):
            return self.columns.image if self._names_paths else None
        if column.type.get_field_index("path") < 0:
            return None
        paths = pc.struct_field(column, "path")
        differ = pc.count_distinct(paths, mode="only_valid").as_py() == len(paths) - paths.null_count
        return self.columns.image if differ and not os.path.isabs(paths[0].as_py() or "") else None

    def _value(self, column: str, index: int) -> Any:
        try:
            return self._table[column][index].as_py()
        except UnicodeDecodeError as error:  # JSON lines and Parquet are read without a look at their texts
            raise BadSampleError("not UTF-8", f"column {column!r}") from error

    def _image(self, index: int) -> bytes:
        image = self._value(self.columns.image, index)
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, bytes) and not self._bytes_are_paths:
            return image
        if not image:
            raise BadSampleError("no picture", f"column {self.columns.image!r} is empty")
        path = self._image_root / _text(image)
        try:
            return path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
            raise BadSampleError("unreadable", f"{getattr(error, 'strerror', error)}: {path}") from error

    def _count_languages(self, column: pa.ChunkedArray) -> None:
        listed = is_list(column.type)
        coded = (pc.list_flatten(column) if listed else column).dictionary_encode().combine_chunks()
        names = [_text(name, errors="replace") for name in coded.dictionary.to_pylist()]
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        if not listed and (codes < 0).any():
            raise ValueError(f"Expected a language in every row of {self._where}, column {self.columns.language!r}.")
        self.languages = dict(zip(names, np.bincount(codes[codes >= 0], minlength=len(names)).tolist(), strict=True))
        self.row_languages = None if listed else codes.astype(np.int64)

    def _require_labels(self, column: pa.ChunkedArray, names: Sequence[str]) -> None:
        """Refuse rows without a label: whether theirs is unknown, or none applies, is not for us to guess."""
        coded = column.combine_chunks().dictionary_encode()
        blank = [_is_blank(_word(value)) and value not in names for value in coded.dictionary.to_pylist()]
        codes = coded.indices.fill_null(len(blank)).to_numpy(zero_copy_only=False)
        rows = np.flatnonzero(np.array([*blank, True])[codes])
        if len(rows):
            raise ValueError(
                f"Expected a label in every row of {self._where}, got {len(rows)} of {len(column)} without in column "
                f"{self.columns.label!r}, the first of them row {rows[0] + 1}. Fill them in, remove these rows, leave "
                "`columns.label` out, or give lists of labels, which may be empty."
            )

    def _name_classes(self, column: pa.ChunkedArray, names: Sequence[str] | None) -> None:
        listed = is_list(column.type)
        found = pc.unique(pc.list_flatten(column) if listed else column).drop_null().to_pylist()
        words = sorted((_word(value) for value in found), key=lambda word: (isinstance(word, str), word))
        self.one_label = not listed
        if self.one_label:
            self._require_labels(column, names or ())
        if names is None:
            self.class_names = [str(word) for word in words]
            self._label_numbers = {word: number for number, word in enumerate(words)}
            return
        self.class_names = list(names)
        self._label_numbers = class_numbers(names)
        unknown = [word for word in words if word not in self._label_numbers]
        if unknown:
            raise ValueError(
                f"Expected labels in column {self.columns.label!r} of {self._where} to be among the {len(names)} "
                f"class_names, got {unknown[:5]}. Name every class in its place: the number 0 is the first of them, "
                f"{len(names) - 1} the last."
            )


def read_words(columns: Columns, value: Callable[[str], Any], numbers: Mapping[Any, int]) -> RawSample:
    """Everything of a row but its picture.

    Args:
        columns: which column holds what.
        value: from the name of a column to what the row has in it.
        numbers: from a label to the number of its class.

    Raises:
        BadSampleError: there should be a caption and is none, a text is not UTF-8, or nobody knows the class.
    """
    found = [
        (_text(text).strip(), columns.weights.get(name, 1.0))
        for name in columns.captions
        for text in _as_list(value(name))
    ]
    spoken = [] if columns.language is None else _as_list(value(columns.language))
    tongues = [_text(name, errors="replace") for name in spoken] * (len(found) if len(spoken) == 1 else 1)
    if tongues and len(tongues) != len(found):
        raise BadSampleError("languages", f"{len(tongues)} languages for {len(found)} captions")
    if columns.captions and not any(caption for caption, _ in found):
        raise BadSampleError("empty caption")
    labels = [] if columns.label is None else [_word(label) for label in _as_list(value(columns.label))]
    strange = [label for label in labels if label not in numbers]
    if strange:
        raise BadSampleError("unknown class", repr(strange[0])[:80])
    kept = [number for number, (caption, _) in enumerate(found) if caption]
    return RawSample(
        b"",
        [found[number][0] for number in kept],
        [numbers[label] for label in labels],
        [found[number][1] for number in kept] if columns.weights else (),
        [tongues[number] for number in kept] if tongues else (),
    )


def class_numbers(names: Sequence[str]) -> dict[Any, int]:
    """From the name of a class to its number, and from the number, too."""
    return {name: number for number, name in enumerate(names)} | dict(enumerate(range(len(names))))


def holds_pictures(schema: pa.Schema, column: str) -> bool:
    """Whether a column of a table holds the content of files, in bytes or as a struct with ``bytes``."""
    kind = schema.field(column).type
    return any(test(kind) for test in (pa.types.is_struct, pa.types.is_binary, pa.types.is_large_binary))


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this Arrow type are lists."""
    return any(test(kind) for test in (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list))


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _text(value: Any, errors: str = "strict") -> str:
    if isinstance(value, bytes):
        try:
            return value.decode(errors=errors)
        except UnicodeDecodeError as error:
            raise BadSampleError("not UTF-8", repr(value[:40])) from error
    return "" if value is None else str(value)


def _is_blank(word: Any) -> bool:
    """Whether a label tells nothing: an empty text, NaN, or a number below 0, as some write it."""
    return not word.strip() if isinstance(word, str) else not word >= 0


def _word(value: Any) -> Any:
    """A label as it is counted: a number, also where a CSV writes it, or a word."""
    if isinstance(value, bytes):
        text = value.decode(errors="replace").strip()
        return int(text) if text.lstrip("-").isdigit() else text
    return value
