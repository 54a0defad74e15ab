"""The embedded pictograms: real drawings with real names, small enough to ship."""

from siglightning.data.pictograms.archive import PictogramArchive

__all__ = ["PictogramArchive"]
