"""Where samples come from: one file a layout. A source knows files and names, and neither chance nor models."""

from siglightning.data.sources.base import RawSample, Source
from siglightning.data.sources.folder import FolderSource
from siglightning.data.sources.table import Columns, TableSource

__all__ = ["Columns", "FolderSource", "RawSample", "Source", "TableSource"]
