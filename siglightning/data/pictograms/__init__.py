"""The embedded pictograms: real drawings with real names, small enough to ship."""

from siglightning.data.pictograms.archive import PictogramArchive
from siglightning.data.pictograms.captions import CaptionChoice
from siglightning.data.pictograms.datamodule import PictogramDataModule

__all__ = ["CaptionChoice", "PictogramArchive", "PictogramDataModule"]
