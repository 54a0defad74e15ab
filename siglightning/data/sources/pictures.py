"""Pictures of which nothing is known, in a folder: to predict on."""

from pathlib import Path
from typing import Any

import numpy as np
from typing_extensions import override

from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.sources.files import SUFFIXES, FilesSource, pictures_below


class PicturesDataModule(MapStyleDataModule):
    """All pictures below a folder, in the order of their paths, or one picture; without labels or captions.

    Their set is called ``pictures``.

    Args:
        root: the folder, or the file of one picture.
        others: of :class:`MapStyleDataModule`.
    """

    def __init__(self, root: str, **others: Any) -> None:
        super().__init__(**others)
        self.root = root

    @override
    def open_parts(self) -> Parts:
        root = Path(self.root)
        if not root.exists():
            raise ValueError(
                f"Expected a picture or a folder of pictures, but {root} does not exist. Check `data.init_args.root`."
            )
        folder = root if root.is_dir() else root.parent
        found = pictures_below(root) if root.is_dir() else [root.name]
        names = [name for name in found if name.lower().endswith(SUFFIXES)]
        if not names:
            raise ValueError(f"Expected pictures ({', '.join(SUFFIXES)}) in {root} or below it, found none.")
        source = FilesSource(folder, names, np.full((len(names), 1), -1), [])
        return Parts(source, source, {"pictures": source})
