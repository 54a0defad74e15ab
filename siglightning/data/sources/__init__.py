"""The zoo: one file a kind of data, each with a source of samples and the data module that opens it."""

from siglightning.data.rows import Columns
from siglightning.data.sources.coco import CocoCaptionsDataModule, CocoSource
from siglightning.data.sources.collages import CollageDataModule, CollageSource
from siglightning.data.sources.crossmodal3600 import Crossmodal3600DataModule, Crossmodal3600Source
from siglightning.data.sources.embeddings import EmbeddingDataModule
from siglightning.data.sources.files import FilesSource
from siglightning.data.sources.folder import FolderDataModule, FolderSource
from siglightning.data.sources.hugging_face import HuggingFaceDataModule, HuggingFaceSource
from siglightning.data.sources.human_action import HUMAN_ACTIONS, HumanActionDataModule
from siglightning.data.sources.imagenet_family import ImageNetTestDataModule, ObjectNetSource
from siglightning.data.sources.litdata import LitDataDataModule, LitDataSource
from siglightning.data.sources.members import Members
from siglightning.data.sources.million_aid import (
    MILLION_AID_LABELS,
    MILLION_AID_SCENES,
    MillionAidDataModule,
    MillionAidSource,
)
from siglightning.data.sources.pictures import PicturesDataModule
from siglightning.data.sources.synthetic import SyntheticDataModule, SyntheticSource
from siglightning.data.sources.table import TableDataModule, TableSource
from siglightning.data.sources.tar_stream import TarStream
from siglightning.data.sources.tars import TarSource
from siglightning.data.sources.torchvision_sets import ArraySource, TorchvisionDataModule
from siglightning.data.sources.webdataset import WebDatasetDataModule

__all__ = [
    "HUMAN_ACTIONS",
    "MILLION_AID_LABELS",
    "MILLION_AID_SCENES",
    "ArraySource",
    "CocoCaptionsDataModule",
    "CocoSource",
    "CollageDataModule",
    "CollageSource",
    "Columns",
    "Crossmodal3600DataModule",
    "Crossmodal3600Source",
    "EmbeddingDataModule",
    "FilesSource",
    "FolderDataModule",
    "FolderSource",
    "HuggingFaceDataModule",
    "HuggingFaceSource",
    "HumanActionDataModule",
    "ImageNetTestDataModule",
    "LitDataDataModule",
    "LitDataSource",
    "Members",
    "MillionAidDataModule",
    "MillionAidSource",
    "ObjectNetSource",
    "PicturesDataModule",
    "SyntheticDataModule",
    "SyntheticSource",
    "TableDataModule",
    "TableSource",
    "TarSource",
    "TarStream",
    "TorchvisionDataModule",
    "WebDatasetDataModule",
]
