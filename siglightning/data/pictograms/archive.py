"""Reading an archive of pictograms: three files, no pickles, no Lightning.

``pictures.bin`` holds WebP pictures one after the other; ``pictures.parquet`` says where each one lies and what it
shows; ``concepts.parquet`` names the concepts. A folder with the same three files can stand in for the embedded one.
"""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

ARCHIVE = Path(__file__).parent / "archive"
PIXELS, INDEX, CONCEPTS = "pictures.bin", "pictures.parquet", "concepts.parquet"


@dataclass(frozen=True, eq=False)
class PictogramArchive:
    """An opened archive; its tables as columns, its pictures on demand.

    Attributes:
        root: the folder.
        pictures: one row a picture: offset, length (bytes), style, concept (row of `concepts`), source, tags.
        concepts: one row a concept: key, family, category, subcategory, name_LOCALE, keywords_LOCALE.
    """

    root: Path
    pictures: pa.Table
    concepts: pa.Table

    @classmethod
    def open(cls, root: Path | str | None = None) -> "PictogramArchive":
        """Opens the embedded archive, or another folder in the same format.

        Raises:
            ValueError: the folder, or one of the three files, is missing or empty.
        """
        folder = ARCHIVE if root is None else Path(root)
        for name in (PIXELS, INDEX, CONCEPTS):
            path = folder / name
            if not path.is_file() or path.stat().st_size == 0:
                state = "is empty" if path.is_file() else "is missing" if folder.is_dir() else "does not exist"
                raise ValueError(
                    f"A pictogram folder holds {PIXELS}, {INDEX} and {CONCEPTS}; "
                    f"{path if folder.is_dir() else folder} {state}. "
                    "Point `data.init_args.root` at such a folder, or leave it out to use the embedded pictures."
                )
        return cls(folder, pq.read_table(folder / INDEX), pq.read_table(folder / CONCEPTS))

    def __len__(self) -> int:
        return int(self.pictures.num_rows)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the contents: the first 16 hexadecimal digits of the SHA-256 over the three files."""
        digest = hashlib.sha256()
        for name in (PIXELS, INDEX, CONCEPTS):
            digest.update((self.root / name).read_bytes())
        return digest.hexdigest()[:16]

    @cached_property
    def _bytes(self) -> NDArray[np.uint8]:
        return np.fromfile(self.root / PIXELS, dtype=np.uint8)

    @cached_property
    def _bounds(self) -> NDArray[np.int64]:
        starts = self.pictures["offset"].to_numpy()
        return np.stack([starts, starts + self.pictures["length"].to_numpy()], axis=1)

    def read_image(self, row: int) -> Tensor:
        """Decodes one picture.

        Args:
            row: row of `pictures`.

        Returns:
            uint8 ``[3, 64, 64]``, RGB.
        """
        start, end = self._bounds[row]
        encoded = torch.from_numpy(self._bytes[start:end])
        image: Tensor = decode_image(encoded, mode=ImageReadMode.RGB)
        return image
