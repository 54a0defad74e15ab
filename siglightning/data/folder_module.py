"""Class folders as a data module."""

from pathlib import Path
from typing import Any

from typing_extensions import override

from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.sources import FolderSource

_TRAIN, _VAL, _TEST = ("train", "training"), ("val", "valid", "validation"), ("test", "testing")


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


def _first(root: Path, names: tuple[str, ...]) -> Path | None:
    return next((root / name for name in names if (root / name).is_dir()), None)
