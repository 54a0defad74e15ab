"""The human-action recognition (HAR) set: 12,600 photographs of 15 actions, as Kaggle and its users lay it out."""

import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray
from typing_extensions import override

from siglightning.data.draws import permutation
from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.sources.files import FilesSource, folders_in
from siglightning.data.sources.folder import FolderSource
from siglightning.data.sources.layout import split_folders, tree
from siglightning.evaluation.prompts import Templates

HUMAN_ACTIONS = (
    *("calling", "clapping", "cycling", "dancing", "drinking", "eating", "fighting", "hugging", "laughing"),
    *("listening_to_music", "running", "sitting", "sleeping", "texting", "using_laptop"),
)
_TABLE, _COLUMNS = "Training_set.csv", ("filename", "label")


class HumanActionDataModule(MapStyleDataModule):
    """Photographs of 15 human actions.

    Found in any of these layouts, also within the one folder that an archive wraps around them:

    * ``root/train/CLASS/*`` and ``root/test/CLASS/*`` (10,710 and 1,890 pictures as published);
    * ``root/CLASS/*``;
    * ``root/Training_set.csv`` with the columns ``filename`` and ``label``, and ``root/train/*``. The pictures of its
      ``root/test`` have no labels and are not used.

    Where nothing labelled is there to test on, the same share of every class is held out: .15 of the 12,600 are 1,890.

    Args:
        root: the folder.
        test_fraction: share of every class that tests where there is no labelled set for it; 0 for none.
        templates: see :class:`MapStyleDataModule`.
        others: of :class:`MapStyleDataModule`.
    """

    def __init__(
        self,
        root: str,
        test_fraction: float = 0.15,
        templates: Templates = ("a photo of a person {}.",),
        **others: Any,
    ) -> None:
        super().__init__(templates=templates, **others)
        if not 0 <= test_fraction < 1:
            raise ValueError(f"`data.init_args.test_fraction` must be at least 0 and below 1, got {test_fraction}.")
        self.root, self.test_fraction = root, test_fraction

    @override
    def open_parts(self) -> Parts:
        root = _unwrapped(Path(self.root))
        if (root / _TABLE).is_file():
            return self._hold_out(_from_table(root))
        train, val, test = split_folders(root)
        whole = _from_folders(train or root)
        val_source = _from_folders(val) if train and val else None
        if train and test and folders_in(test):
            return Parts(whole, val_source, {"test": _from_folders(test)})
        return self._hold_out(whole, val_source)

    def _hold_out(self, whole: FilesSource, val: FilesSource | None = None) -> Parts:
        """Some of every class to test on, the rest to train on."""
        labels = whole.labels[:, 0]
        # Another epoch than the one that chooses what validates: both choices must not go together.
        order = permutation("split", self.split_seed, 1, len(whole))
        classes = [order[labels[order] == number] for number in range(len(HUMAN_ACTIONS))]
        test = np.sort(np.concatenate([rows[: round(self.test_fraction * len(rows))] for rows in classes]))
        rest = np.setdiff1d(np.arange(len(whole)), test)
        return Parts(whole.take(rest), val, {"test": whole.take(test)} if len(test) else {})


def _unwrapped(folder: Path) -> Path:
    """The folder itself, or what is in the one folder that it holds, unless that is a class."""
    if not folder.is_dir():
        raise ValueError(f"Expected the human-action set in {folder}, which does not exist.")
    inner = [name for name in os.listdir(folder) if not name.startswith((".", "__"))]
    if inner == folders_in(folder) and len(inner) == 1 and _letters(inner[0]) not in map(_letters, HUMAN_ACTIONS):
        return _unwrapped(folder / inner[0])
    return folder


def _from_folders(folder: Path) -> FilesSource:
    source = FolderSource(_unwrapped(folder))
    counts = np.bincount(source.labels[:, 0]).tolist()
    return source.relabelled(_numbers(source.class_names, counts, source.root), HUMAN_ACTIONS)


def _from_table(root: Path) -> FilesSource:
    path, folder = root / _TABLE, root / "train"
    try:
        strings = dict.fromkeys(_COLUMNS, pa.string())
        table = pa.csv.read_csv(path, convert_options=pa.csv.ConvertOptions(column_types=strings))
    except pa.ArrowInvalid as error:
        raise ValueError(f"{path} cannot be read as CSV: {error}") from error
    if not set(_COLUMNS) <= set(table.column_names):
        raise ValueError(f"Expected the columns filename and label in {path}, got {', '.join(table.column_names)}.")
    if not folder.is_dir():
        raise ValueError(f"Expected the pictures of {path} in {folder}, which does not exist.")
    folder = _unwrapped(folder)
    _check_files(path, folder, table["filename"].to_pylist())
    words = table["label"].combine_chunks().dictionary_encode()
    codes = words.indices.fill_null(len(words.dictionary)).to_numpy()
    names = [*words.dictionary.to_pylist(), *([""] if words.null_count else [])]
    numbers = _numbers(names, np.bincount(codes).tolist(), path)
    return FilesSource(folder, table["filename"].to_pylist(), numbers[codes], HUMAN_ACTIONS)


def _check_files(path: Path, folder: Path, names: Sequence[str]) -> None:
    missing = sorted(set(names) - set(os.listdir(folder)))
    if missing:
        raise ValueError(
            f"Expected the {len(names):,} pictures of {path} in {folder}, {len(missing):,} are missing: "
            f"{', '.join(missing[:3])}{' ...' if len(missing) > 3 else ''}. Unpack the archive again, or remove "
            "their lines."
        )


def _numbers(names: Sequence[str], counts: Sequence[int], where: Path) -> NDArray[np.int64]:
    """The number of each named class, however it is spelled: ``Using Laptop`` is ``using_laptop``."""
    known = {_letters(name): number for number, name in enumerate(HUMAN_ACTIONS)}
    numbers = [known.get(_letters(name), -1) for name in names]
    missing = [name for number, name in enumerate(HUMAN_ACTIONS) if number not in numbers]
    strange = [
        f"{name or 'no label'} ({count:,} pictures)"
        for name, count, number in zip(names, counts, numbers, strict=True)
        if number < 0 or numbers.count(number) > 1
    ]
    if missing or strange:
        raise ValueError(
            f"Expected the {len(HUMAN_ACTIONS)} human actions in {where}, each once; missing: "
            f"{', '.join(missing) or 'none'}; others there: {', '.join(strange[:8]) or 'none'}"
            f"{' ...' if len(strange) > 8 else ''}. FolderDataModule and TableDataModule read any classes."
            + (f" Found: {tree(where)}" if where.is_dir() else "")
        )
    return np.array(numbers)


def _letters(name: str) -> str:
    return re.sub("[^a-z]", "", name.lower())
