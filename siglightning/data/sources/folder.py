"""A folder with one subfolder a class, as torchvision's ImageFolder and many data sets have it."""

from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.sources.files import SUFFIXES, FilesSource, folders_in, pictures_below

_TRAIN, _VAL, _TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")


class FolderSource(FilesSource):
    """Pictures of ``root/CLASS/**``, classes and files in the order of their names.

    Args:
        root: the folder.

    Raises:
        ValueError: it does not exist, holds no class folders, or no pictures.
    """

    def __init__(self, root: str | Path) -> None:
        root = Path(root)
        if not root.is_dir():
            raise ValueError(f"Expected a folder with one subfolder a class, but {root} does not exist.")
        classes = folders_in(root)
        if not classes:
            raise ValueError(f"Expected one subfolder a class in {root}, found none. Is it one level too deep?")
        files = [list(pictures_below(root / name, f"{name}/")) for name in classes]
        empty = [name for name, names in zip(classes, files, strict=True) if not names]
        if empty:
            raise ValueError(
                f"Expected pictures ({', '.join(SUFFIXES)}) in every class folder of {root}, found none in "
                f"{', '.join(empty[:5])}{' ...' if len(empty) > 5 else ''}. Remove empty folders."
            )
        labels = np.repeat(np.arange(len(files)), [len(names) for names in files])
        super().__init__(root, [name for names in files for name in names], labels, classes)


class FolderDataModule(MapStyleDataModule):
    """Pictures in one subfolder a class.

    Either ``root/train/CLASS/...`` with ``root/val`` and ``root/test`` beside it where they exist, or
    ``root/CLASS/...``, of which a share validates.

    Args:
        root: the folder.
        others: of :class:`MapStyleDataModule`.
    """

    def __init__(self, root: str, **others: Any) -> None:
        super().__init__(**others)
        self.root = root

    @override
    def open_parts(self) -> Parts:
        root = Path(self.root)
        train, val, test = split_folders(root)
        tests = {} if test is None or train is None else {"test": FolderSource(test)}
        val_source = None if val is None or train is None else FolderSource(val)
        return Parts(FolderSource(train or root), val_source, tests)


def split_folders(root: Path) -> tuple[Path | None, Path | None, Path | None]:
    """The folders in ``root`` to train, validate and test on, by their usual names."""
    return _first(root, _TRAIN), _first(root, _VAL), _first(root, _TEST)


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)
