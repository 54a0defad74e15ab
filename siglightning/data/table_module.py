"""Tables as a data module."""

from collections.abc import Mapping, Sequence
from typing import Any

from typing_extensions import override

from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.sources import Columns, TableSource


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
