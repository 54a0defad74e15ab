"""A folder with one subfolder a class, as torchvision's ImageFolder and many data sets have it."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from typing_extensions import override

from siglightning.data.images import BadSampleError
from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.source import RawSample, Source, digest

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jfif")
_TRAIN, _VAL, _TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")


class FolderSource(Source):
    """Pictures of ``root/CLASS/**``, classes and files in the order of their names.

    Args:
        root: the folder.

    Raises:
        ValueError: it does not exist, holds no class folders, or no pictures.
    """

    one_label = True

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise ValueError(f"Expected a folder with one subfolder a class, but {self.root} does not exist.")
        self.class_names = sorted(entry.name for entry in os.scandir(self.root) if _is_class(entry))
        if not self.class_names:
            raise ValueError(f"Expected one subfolder a class in {self.root}, found none. Is it one level too deep?")
        files = [list(_pictures(self.root / name, name)) for name in self.class_names]
        self._labels = np.repeat(np.arange(len(files), dtype=np.int32), [len(names) for names in files])
        self._names = pa.array([name for names in files for name in names], pa.large_string())
        empty = [name for name, names in zip(self.class_names, files, strict=True) if not names]
        if empty:
            raise ValueError(
                f"Expected pictures ({', '.join(SUFFIXES)}) in every class folder of {self.root}, found none in "
                f"{', '.join(empty[:5])}{' ...' if len(empty) > 5 else ''}. Remove empty folders."
            )

    @override
    def __len__(self) -> int:
        return len(self._names)

    @override
    def key(self, index: int) -> str:
        """The path below the root, with forward slashes."""
        return str(self._names[index].as_py())

    @override
    def read(self, index: int) -> RawSample:
        path = self.root / self.key(index)
        try:
            return RawSample(path.read_bytes(), labels=[int(self._labels[index])])
        except OSError as error:
            raise BadSampleError("unreadable", f"{error.strerror}: {path}") from error

    @property
    @override
    def fingerprint(self) -> str:
        return digest(str(name).encode() for name in self._names)


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
        train, val, test = (_first(root, names) for names in (_TRAIN, _VAL, _TEST))
        tests = {} if test is None or train is None else {"test": FolderSource(test)}
        val_source = None if val is None or train is None else FolderSource(val)
        return Parts(FolderSource(train or root), val_source, tests)


def _is_class(entry: "os.DirEntry[str]") -> bool:
    return entry.is_dir() and not entry.name.startswith((".", "__"))


def _pictures(folder: Path, prefix: str) -> Iterator[str]:
    """Paths of all pictures below a folder, sorted, each with ``prefix`` in front."""
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _pictures(Path(entry.path), f"{prefix}/{entry.name}")
        elif entry.name.lower().endswith(SUFFIXES) and not entry.name.startswith("."):
            yield f"{prefix}/{entry.name}"


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)
