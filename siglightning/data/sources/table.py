"""A table with one row a sample: CSV, TSV, JSON lines, Parquet or Arrow, with paths of pictures or the pictures."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from typing_extensions import override

from siglightning.data.images import BadSampleError
from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.source import RawSample, Source, digest

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_LINES = (".jsonl", ".ndjson", ".json")
_SUFFIXES = (*_SEPARATORS, *_LINES, ".parquet", ".arrow", ".feather")


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


class TableSource(Source):
    """Rows of a table, in their order.

    An Arrow file is mapped into memory and read where it is touched; the others are read whole, their used columns
    only.

    Args:
        path: of the table.
        columns: which column holds what.
        image_root: folder that paths begin at; ``None``: that of the table.
        class_names: of the labels, for numbers in the table or to fix their order; ``None``: all words that occur,
            sorted.

    Raises:
        ValueError: the table or a column is missing, the table is empty or of an unknown kind, or a label is unknown.
    """

    def __init__(
        self,
        path: str | Path,
        columns: Columns | None = None,
        image_root: str | Path | None = None,
        class_names: Sequence[str] | None = None,
    ) -> None:
        self.path, self.columns = Path(path), columns or Columns()
        self._table = _read(self.path, self.columns.used())
        if not len(self._table):
            raise ValueError(f"Expected at least one row in {self.path}, found none.")
        self._image_root = self.path.parent if image_root is None else Path(image_root)
        self._label_numbers: dict[Any, int] = {}
        if self.columns.language is not None:
            self._count_languages(self._table[self.columns.language])
        if self.columns.label is not None:
            self._name_classes(self._table[self.columns.label], class_names)

    @override
    def __len__(self) -> int:
        return int(self._table.num_rows)

    @override
    def key(self, index: int) -> str:
        if self.columns.key is not None:
            return _text(self._value(self.columns.key, index))
        image = self._value(self.columns.image, index)
        if isinstance(image, dict) and isinstance(image.get("path"), str):
            return str(image["path"])
        return _text(image) if self._is_path(image) else str(index)

    @override
    def read(self, index: int) -> RawSample:
        columns = self.columns
        found = [
            (_text(text).strip(), columns.weights.get(name, 1.0))
            for name in columns.captions
            for text in _as_list(self._value(name, index))
        ]
        spoken = [] if columns.language is None else _as_list(self._value(columns.language, index))
        tongues = [_text(name) for name in spoken] * (len(found) if len(spoken) == 1 else 1)
        if tongues and len(tongues) != len(found):
            raise BadSampleError("languages", f"{len(tongues)} languages for {len(found)} captions")
        if columns.captions and not any(caption for caption, _ in found):
            raise BadSampleError("empty caption")
        labels = [] if columns.label is None else _as_list(self._value(columns.label, index))
        kept = [number for number, (caption, _) in enumerate(found) if caption]
        return RawSample(
            self._image(index),
            [found[number][0] for number in kept],
            [self._label_numbers[_word(label)] for label in labels],
            [found[number][1] for number in kept] if columns.weights else (),
            [tongues[number] for number in kept] if tongues else (),
        )

    @property
    @override
    def fingerprint(self) -> str:
        chunks = [chunk for name in self._small_columns() for chunk in self._table[name].chunks]
        buffers = (buffer for chunk in chunks for buffer in chunk.buffers() if buffer is not None)
        return digest([str(len(self)).encode(), *(memoryview(buffer).tobytes() for buffer in buffers)])

    def _small_columns(self) -> list[str]:
        """The used columns that do not hold pictures."""
        column = self._table.schema.field(self.columns.image).type
        holds_pictures = pa.types.is_struct(column) or not self._is_path(self._value(self.columns.image, 0))
        return [name for name in self.columns.used() if not (name == self.columns.image and holds_pictures)]

    def _value(self, column: str, index: int) -> Any:
        return self._table[column][index].as_py()

    def _is_path(self, image: Any) -> bool:
        """Text is a path; so are short bytes that a CSV gave, which are read as bytes to see what is no UTF-8."""
        return isinstance(image, str) or (isinstance(image, bytes) and self.path.suffix.lower() in _SEPARATORS)

    def _image(self, index: int) -> bytes:
        image = self._value(self.columns.image, index)
        if isinstance(image, dict):
            image = image.get("bytes") or image.get("path")
        if isinstance(image, bytes) and not self._is_path(image):
            return image
        if not image:
            raise BadSampleError("no picture", f"column {self.columns.image!r} is empty")
        path = self._image_root / _text(image)
        try:
            return path.read_bytes()
        except OSError as error:
            raise BadSampleError("unreadable", f"{error.strerror}: {path}") from error

    def _count_languages(self, column: pa.ChunkedArray) -> None:
        listed = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        coded = (pc.list_flatten(column) if listed else column).dictionary_encode().combine_chunks()
        names = [_text(name) for name in coded.dictionary.to_pylist()]
        codes = coded.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        if not listed and (codes < 0).any():
            raise ValueError(f"Expected a language in every row of {self.path}, column {self.columns.language!r}.")
        self.languages = dict(zip(names, np.bincount(codes[codes >= 0], minlength=len(names)).tolist(), strict=True))
        self.row_languages = None if listed else codes.astype(np.int64)

    def __getstate__(self) -> dict[str, Any]:
        """Loading processes that are not forked open the file again: a pickled table would be a copy in each."""
        return {**self.__dict__, "_table": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._table = _read(self.path, self.columns.used())

    def _name_classes(self, column: pa.ChunkedArray, names: Sequence[str] | None) -> None:
        is_list = pa.types.is_list(column.type) or pa.types.is_large_list(column.type)
        found = pc.unique(pc.list_flatten(column) if is_list else column).drop_null().to_pylist()
        words = sorted((_word(value) for value in found), key=lambda word: (isinstance(word, str), word))
        self.one_label = not is_list and column.null_count == 0
        if names is None:
            self.class_names = [str(word) for word in words]
            self._label_numbers = {word: number for number, word in enumerate(words)}
            return
        self.class_names = list(names)
        self._label_numbers = {name: number for number, name in enumerate(names)} | dict(enumerate(range(len(names))))
        unknown = [word for word in words if word not in self._label_numbers]
        if unknown:
            raise ValueError(
                f"Expected labels in column {self.columns.label!r} of {self.path} to be among the {len(names)} "
                f"class_names, got {unknown[:5]}."
            )


class TableDataModule(MapStyleDataModule):
    """CSV, TSV, JSON lines, Parquet or Arrow with one row a sample: a picture or its path, captions, labels.

    Args:
        train: path of the table to train on.
        val: of the one to validate on; ``None``: a share of ``train``.
        tests: name -> path.
        columns: which column holds what.
        image_root: folder that paths begin at; ``None``: that of each table.
        class_names: of the labels; ``None``: all words in the training table, sorted.
        others: of :class:`MapStyleDataModule`.
    """

    def __init__(
        self,
        train: str,
        val: str | None = None,
        tests: Mapping[str, str] | None = None,
        columns: Columns | None = None,
        image_root: str | None = None,
        class_names: Sequence[str] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.train, self.val, self.tests = train, val, dict(tests or {})
        self.columns, self.image_root, self.given_class_names = columns or Columns(), image_root, class_names

    @override
    def open_parts(self) -> Parts:
        train = self._open(self.train, self.given_class_names)
        names = self.given_class_names or train.class_names or None
        val = None if self.val is None else self._open(self.val, names)
        return Parts(train, val, {name: self._open(path, names) for name, path in self.tests.items()})

    def _open(self, path: str, class_names: Sequence[str] | None) -> TableSource:
        return TableSource(path, self.columns, self.image_root, class_names)


def _read(path: Path, columns: Sequence[str]) -> pa.Table:
    if not path.is_file():
        raise ValueError(f"Expected a table, but {path} does not exist.")
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"Expected a table that ends with {', '.join(_SUFFIXES)}, got {path}.")
    try:
        names = _column_names(path, suffix)
        missing = [name for name in columns if name not in names]
        if missing:
            raise ValueError(
                f"Expected the column{'s' if len(missing) > 1 else ''} {', '.join(missing)} in {path}, which has "
                f"{', '.join(names)}. Say with `columns` which one holds what."
            )
        return _load(path, suffix, columns)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read as {suffix[1:]}: {error}") from error


def _column_names(path: Path, suffix: str) -> list[str]:
    if suffix == ".parquet":
        return list(pq.read_schema(path).names)
    if suffix in _SEPARATORS:
        with pa.csv.open_csv(path, parse_options=_parsing(suffix)) as reader:
            return list(reader.schema.names)
    return list(_load(path, suffix, None).column_names)


def _load(path: Path, suffix: str, columns: Sequence[str] | None) -> pa.Table:
    if suffix == ".parquet":
        return pq.read_table(path, columns=columns, memory_map=True)
    if suffix in _SEPARATORS:
        # As bytes, so that one caption that is no UTF-8 is one bad sample, and not the end of the file.
        assert columns is not None
        convert = pa.csv.ConvertOptions(include_columns=columns, column_types=dict.fromkeys(columns, pa.binary()))
        return pa.csv.read_csv(path, parse_options=_parsing(suffix), convert_options=convert)
    is_text = suffix in _LINES
    table = pa.json.read_json(path) if is_text else pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    return table if columns is None else table.select(columns)


def _parsing(suffix: str) -> pa.csv.ParseOptions:
    return pa.csv.ParseOptions(delimiter=_SEPARATORS[suffix], newlines_in_values=True)


def _as_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return list(value) if isinstance(value, list) else [value]


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise BadSampleError("not UTF-8", repr(value[:40])) from error
    return "" if value is None else str(value)


def _word(value: Any) -> Any:
    """A label as it is counted: a number, also where a CSV writes it, or a word."""
    if isinstance(value, bytes):
        text = value.decode(errors="replace").strip()
        return int(text) if text.lstrip("-").isdigit() else text
    return value
