"""A table with one row a sample: CSV, TSV, JSON lines, Parquet or Arrow, with paths of pictures or the pictures."""

from collections.abc import Mapping, Sequence
from glob import glob
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.json
import pyarrow.parquet as pq
from typing_extensions import override

from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.rows import Columns, RowSource, holds_pictures
from siglightning.data.unpacked import unpacked_column

Paths = str | Path | Sequence[str | Path]

_SEPARATORS = {".csv": ",", ".tsv": "\t", ".txt": "\t"}
_LINES = (".jsonl", ".ndjson", ".json")
_SUFFIXES = (*_SEPARATORS, *_LINES, ".parquet", ".arrow", ".feather")


class TableSource(RowSource):
    """Rows of one table or of several alike, in their order.

    An Arrow file is mapped into memory and read where it is touched; of the others the used columns are read whole,
    but for pictures within Parquet, which are unpacked into such an Arrow file first
    (:mod:`siglightning.data.unpacked`).

    Args:
        path: of the table, or of its parts: several paths, or a pattern such as ``shards/*.parquet``.
        columns: which column holds what.
        image_root: folder that paths begin at; ``None``: that of the table.
        class_names: of the labels, for numbers in the table or to fix their order; ``None``: all words that occur,
            sorted.
        cache_dir: folder for unpacked pictures; ``None``: one in the user's cache.

    Raises:
        ValueError: the table or a column is missing, the table is empty or of an unknown kind, its parts differ, or a
            label is unknown.
    """

    def __init__(
        self,
        path: Paths,
        columns: Columns | None = None,
        image_root: str | Path | None = None,
        class_names: Sequence[str] | None = None,
        cache_dir: str | Path | None = None,
    ) -> None:
        self.paths = _files(path)
        self._cache_dir = None if cache_dir is None else Path(cache_dir)
        first, more = self.paths[0], len(self.paths) - 1
        super().__init__(
            self._open(columns or Columns()),
            columns or Columns(),
            first.parent if image_root is None else image_root,
            class_names,
            where=f"{first} and {more} more" if more else first,
            bytes_are_paths=first.suffix.lower() in _SEPARATORS,
        )
        if image_root is None and self._names_paths and len({path.parent for path in self.paths}) > 1:
            raise ValueError(
                f"{first} and the other parts of the table lie in different folders, so that it is not clear where "
                "their paths begin. Give `image_root`."
            )

    def _open(self, columns: Columns) -> pa.Table:
        tables = [_read(path, columns, self._cache_dir) for path in self.paths]
        try:
            return pa.concat_tables(tables, promote_options="default")
        except pa.ArrowException as error:
            raise ValueError(
                f"Expected the same columns in {self.paths[0]} and the other parts of the table: {error}"
            ) from error

    def __getstate__(self) -> dict[str, Any]:
        """Loading processes that are not forked open the file again: a pickled table would be a copy in each."""
        return {**self.__dict__, "_table": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._table = self._open(self.columns)


class TableDataModule(MapStyleDataModule):
    """CSV, TSV, JSON lines, Parquet or Arrow with one row a sample: a picture or its path, captions, labels.

    Args:
        train: path of the table to train on, or of its parts: several paths, or a pattern such as
            ``shards/*.parquet``.
        val: of the one to validate on; ``None``: a share of ``train``.
        tests: name -> path.
        columns: which column holds what.
        image_root: folder that paths begin at; ``None``: that of each table.
        class_names: of the labels; ``None``: all words in the training table, sorted.
        cache_dir: folder for pictures that are unpacked from Parquet, of about its size; ``None``:
            ``~/.cache/siglightning/tables``.
        others: of :class:`MapStyleDataModule`.
    """

    def __init__(
        self,
        train: str | list[str],
        val: str | list[str] | None = None,
        tests: Mapping[str, str | list[str]] | None = None,
        columns: Columns | None = None,
        image_root: str | None = None,
        class_names: Sequence[str] | None = None,
        cache_dir: str | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.train, self.val, self.tests = train, val, dict(tests or {})
        self.columns, self.image_root, self.given_class_names = columns or Columns(), image_root, class_names
        self.cache_dir = cache_dir

    @override
    def open_parts(self) -> Parts:
        train = self._open(self.train, self.given_class_names)
        names = self.given_class_names or train.class_names or None
        val = None if self.val is None else self._open(self.val, names)
        return Parts(train, val, {name: self._open(path, names) for name, path in self.tests.items()})

    def _open(self, path: str | list[str], class_names: Sequence[str] | None) -> TableSource:
        return TableSource(path, self.columns, self.image_root, class_names, self.cache_dir)


def _files(path: Paths) -> list[Path]:
    """The files that paths and patterns stand for."""
    given: list[str | Path] = [path] if isinstance(path, str | Path) else list(path)
    if not given:
        raise ValueError("Expected at least one table, got an empty list.")
    return [Path(found) for name in given for found in sorted(glob(str(name), recursive=True)) or [str(name)]]


def _read(path: Path, columns: Columns, cache_dir: Path | None) -> pa.Table:
    if path.is_dir():
        raise ValueError(f"Expected a table, but {path} is a folder. Name its files, as in {path}/*.parquet.")
    if not path.is_file():
        raise ValueError(f"Expected a table, but {path} does not exist.")
    suffix = path.suffix.lower()
    if suffix not in _SUFFIXES:
        raise ValueError(f"Expected a table that ends with {', '.join(_SUFFIXES)}, got {path}.")
    try:
        if suffix in _SEPARATORS:
            return _read_csv(path, columns, pa.csv.ParseOptions(delimiter=_SEPARATORS[suffix], newlines_in_values=True))
        if suffix == ".parquet":
            return _read_parquet(path, columns, cache_dir)
        table = pa.json.read_json(path) if suffix in _LINES else _map_arrow(path)
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read as {suffix[1:]}: {error}") from error
    columns.check(table.column_names, path)
    return table.select(columns.used())


def _read_csv(path: Path, columns: Columns, parsing: pa.csv.ParseOptions) -> pa.Table:
    with pa.csv.open_csv(path, parse_options=parsing) as reader:
        columns.check(reader.schema.names, path)
    # As bytes, so that one caption that is no UTF-8 is one bad sample, and not the end of the file.
    types = dict.fromkeys(columns.used(), pa.binary())
    convert = pa.csv.ConvertOptions(include_columns=columns.used(), column_types=types)
    return pa.csv.read_csv(path, parse_options=parsing, convert_options=convert)


def _read_parquet(path: Path, columns: Columns, cache_dir: Path | None) -> pa.Table:
    with pq.ParquetFile(path, memory_map=True) as file:
        columns.check(file.schema_arrow.names, path)
        unpack = holds_pictures(file.schema_arrow, columns.image)
        table = file.read([name for name in columns.used() if not (name == columns.image and unpack)])
    return table.append_column(columns.image, unpacked_column(path, columns.image, cache_dir)) if unpack else table


def _map_arrow(path: Path) -> pa.Table:
    """Both forms of an Arrow file; Hugging Face writes the one for streams."""
    try:
        return pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    except pa.ArrowInvalid:
        return pa.ipc.open_stream(pa.memory_map(str(path))).read_all()
