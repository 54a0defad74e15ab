"""Data modules, and what they are made of."""

from siglightning.data.base import BaseDataModule, SampleDataset
from siglightning.data.collate import Collate, Sample
from siglightning.data.pictograms import CaptionChoice, PictogramArchive, PictogramDataModule
from siglightning.data.sampler import EvaluationSampler, GlobalBatchSampler, SampleKey
from siglightning.data.transforms import Augmentation, augment, resize

__all__ = [
    "Augmentation",
    "BaseDataModule",
    "CaptionChoice",
    "Collate",
    "EvaluationSampler",
    "GlobalBatchSampler",
    "PictogramArchive",
    "PictogramDataModule",
    "Sample",
    "SampleDataset",
    "SampleKey",
    "augment",
    "resize",
]
