"""Data sets of Hugging Face ``datasets``: saved to disk, as Parquet, or by their name on the hub."""

from collections.abc import Sequence
from glob import glob
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.rows import Columns, RowSource

if TYPE_CHECKING:
    from datasets import Dataset, Features

_SUFFIXES = (".parquet", ".arrow")
_SAVED = ("dataset_dict.json", "state.json")  # of several splits, of one


class HuggingFaceSource(RowSource):
    """Rows of a data set, which stays mapped into memory.

    The rows are taken from the Arrow table beneath, where pictures are files as they were stored; columns of the
    library's `Image` are never decoded by it.

    Args:
        dataset: one split.
        columns: which column holds what.
        class_names: of the labels; ``None``: the names that the data set knows, else all words that occur, sorted.
        where: what to call the data set in errors.

    Raises:
        ValueError: a column is missing, there is no row, or a label is unknown.
    """

    def __init__(
        self,
        dataset: "Dataset",
        columns: Columns | None = None,
        class_names: Sequence[str] | None = None,
        where: object = "the data set",
    ) -> None:
        columns = columns or Columns()
        self._dataset = dataset.with_format("arrow")
        names = class_names or _class_names(dataset.features, columns.label)
        super().__init__(self._dataset[:], columns, Path(), names, where=where)

    def __getstate__(self) -> dict[str, Any]:
        """Loading processes that are not forked map the files again."""
        return {**self.__dict__, "_table": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._table = self._dataset[:]


class HuggingFaceDataModule(MapStyleDataModule):
    """A data set that the library ``datasets`` reads; needs the extra of that name.

    Args:
        path: a folder made by ``save_to_disk``; a Parquet file or a pattern for several, which are the split ``train``;
            a folder of Parquet files, whose names tell their splits; or a name on the hub.
        columns: which column holds what.
        train_split: name of the split to train on; ``train[:90%]`` and the like, too, unless it was saved to disk.
        val_split: of the one to validate on; ``None``: a share of ``train_split``.
        test_splits: of those to test on.
        name: of a configuration, where the data set has several.
        revision: branch, tag or commit on the hub.
        class_names: of the labels; ``None``: the names that the data set knows, else all words that occur, sorted.
        others: of :class:`MapStyleDataModule`.
    """

    def __init__(
        self,
        path: str,
        columns: Columns | None = None,
        train_split: str = "train",
        val_split: str | None = None,
        test_splits: Sequence[str] = (),
        name: str | None = None,
        revision: str | None = None,
        class_names: Sequence[str] | None = None,
        **others: Any,
    ) -> None:
        super().__init__(**others)
        self.path, self.columns, self.name, self.revision = path, columns or Columns(), name, revision
        self.train_split, self.val_split, self.test_splits = train_split, val_split, list(test_splits)
        self.given_class_names = class_names

    @override
    def open_parts(self) -> Parts:
        wanted = [self.train_split, *([self.val_split] if self.val_split else []), *self.test_splits]
        splits = dict(zip(wanted, _load(self.path, self.name, self.revision, wanted), strict=True))
        train = self._source(splits, self.train_split, self.given_class_names)
        names = self.given_class_names or train.class_names or None
        val = self._source(splits, self.val_split, names) if self.val_split else None
        return Parts(train, val, {split: self._source(splits, split, names) for split in self.test_splits})

    def _source(self, splits: "dict[str, Dataset]", split: str, names: Sequence[str] | None) -> HuggingFaceSource:
        return HuggingFaceSource(splits[split], self.columns, names, where=f"split {split} of {self.path}")


def _load(path: str, name: str | None, revision: str | None, splits: Sequence[str]) -> "list[Dataset]":
    """The splits, in the order of their names."""
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            'Data sets of Hugging Face need the library `datasets`: pip install "siglightning[datasets]".'
        ) from error
    place, files = Path(path), sorted(glob(path, recursive=True))
    is_here = place.exists() or bool(files)
    is_name = path.count("/") < 2 and place.suffix not in _SUFFIXES and not (path.startswith((".", "~")) or "*" in path)
    if not is_here and not is_name:
        raise ValueError(f"Expected a folder, a Parquet file or a name on the hub, but {path} does not exist.")
    try:
        if any((place / file).is_file() for file in _SAVED):
            return _saved(datasets.load_from_disk(path), splits)
        if is_here and not place.is_dir():
            return list(datasets.load_dataset("parquet", data_files=files or path, split=list(splits)))
        full = str(place.resolve()) if is_here else path  # a folder may be called "parquet", which the library is, too
        return list(datasets.load_dataset(full, name, revision=revision, split=list(splits)))
    except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
        raise ValueError(_explain(path, is_here, error)) from error


def _explain(path: str, is_here: bool, error: Exception) -> str:
    """One line on what went wrong, and on what to do."""
    reason = " ".join(str(error).split())[:300].rstrip(".")
    if is_here:
        return f"{path} cannot be read: {reason}. `path`, `name` and the splits must fit what is there."
    return (
        f"{path} is not here, and the hub does not give it: {reason}. Check the name and the connection; or, where "
        f"there is one, run `datasets.load_dataset({path!r}).save_to_disk(FOLDER)`, and give FOLDER."
    )


def _saved(found: Any, splits: Sequence[str]) -> "list[Dataset]":
    """Splits of what was saved to disk; a data set saved by itself is the split ``train``."""
    known = found if isinstance(found, dict) else {"train": found}
    unknown = [split for split in splits if split not in known]
    if unknown:
        raise ValueError(f"Expected splits among {', '.join(known)}, got {', '.join(unknown)}.")
    return [known[split] for split in splits]


def _class_names(features: "Features", label: str | None) -> Sequence[str] | None:
    """The names of a column of class labels, or of lists of them."""
    feature = None if label is None else features.get(label)
    names: Sequence[str] | None = getattr(getattr(feature, "feature", feature), "names", None)
    return names
