"""Data modules, and what they are made of."""

from siglightning.data.base import BaseDataModule, SampleDataset
from siglightning.data.collate import Collate, Sample
from siglightning.data.folder_module import FolderDataModule
from siglightning.data.images import BadSampleError, ImageLimits
from siglightning.data.map_style_module import MapStyleDataModule
from siglightning.data.pictograms import CaptionChoice, PictogramArchive, PictogramDataModule
from siglightning.data.sampler import EvaluationSampler, GlobalBatchSampler, SampleKey
from siglightning.data.sources import Columns, FolderSource, RawSample, Source, TableSource
from siglightning.data.table_module import TableDataModule
from siglightning.data.transforms import Augmentation, augment, resize

__all__ = [
    "Augmentation",
    "BadSampleError",
    "BaseDataModule",
    "CaptionChoice",
    "Collate",
    "Columns",
    "EvaluationSampler",
    "FolderDataModule",
    "FolderSource",
    "GlobalBatchSampler",
    "ImageLimits",
    "MapStyleDataModule",
    "PictogramArchive",
    "PictogramDataModule",
    "RawSample",
    "Sample",
    "SampleDataset",
    "SampleKey",
    "Source",
    "TableDataModule",
    "TableSource",
    "augment",
    "resize",
]
