"""Data sets that torchvision knows: its classes find, check and fetch the files, and pictures are read from these."""

import os
import re
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torchvision import datasets
from torchvision.datasets.utils import extract_archive
from typing_extensions import override

from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.source import RawSample, Source, digest
from siglightning.data.sources.files import FilesSource
from siglightning.data.sources.wordnet import names_of_numbers
from siglightning.evaluation.prompts import Templates

SetName = Literal["CIFAR10", "CIFAR100", "OxfordIIITPet", "EuroSAT", "FashionMNIST", "ImageNet"]

_ERRORS = (RuntimeError, OSError, EOFError, zlib.error, AssertionError)  # of torchvision, for files that are not right

_NO_DOWNLOAD = (
    "It cannot be downloaded without an account: get ILSVRC2012_img_train.tar, ILSVRC2012_img_val.tar and "
    "ILSVRC2012_devkit_t12.tar.gz, and unpack them once with `torchvision.datasets.ImageNet(root, split)` for the "
    "splits train and val."
)


class ArraySource(Source):
    """Pictures of one size in memory, each with one label.

    Args:
        pixels: uint8 ``[N, 3, H, W]``, or ``[N, 1, H, W]`` for gray ones.
        labels: integers ``[N]``.
        class_names: of the labels.
        prefix: of the samples' keys, which end with their number.
    """

    one_label = True

    def __init__(
        self, pixels: NDArray[np.uint8], labels: NDArray[np.integer[Any]], class_names: Sequence[str], prefix: str
    ) -> None:
        self.class_names, self.prefix = list(class_names), prefix
        self._pixels, self._labels = pixels, labels.astype(np.int32)

    @override
    def __len__(self) -> int:
        return len(self._labels)

    @override
    def key(self, index: int) -> str:
        return f"{self.prefix}{index:05d}"

    @override
    def read(self, index: int) -> RawSample:
        return RawSample(torch.from_numpy(self._pixels[index]).expand(3, -1, -1), labels=[int(self._labels[index])])

    @property
    @override
    def row_labels(self) -> NDArray[np.int64]:
        return self._labels.astype(np.int64)

    @property
    @override
    def fingerprint(self) -> str:
        return digest([self.prefix.encode(), "\0".join(self.class_names).encode(), self._labels.tobytes()])


class TorchvisionDataModule(MapStyleDataModule):
    """A data set that torchvision knows, with its own split into training and test set.

    ========================= ======================================================= ==========================
    name                      in ``root``                                             training + test pictures
    ========================= ======================================================= ==========================
    CIFAR10, CIFAR100         ``cifar-10-batches-py``, ``cifar-100-python``           50,000 + 10,000
    FashionMNIST              ``FashionMNIST/raw/*-ubyte``; or the ``*-ubyte.gz``     60,000 + 10,000
    OxfordIIITPet             ``oxford-iiit-pet/images`` and ``/annotations``         3,680 + 3,669
    EuroSAT                   ``eurosat/2750/CLASS``                                  27,000, no test set
    ImageNet                  ``train/WNID``, ``val/WNID``                            1,281,167, validation 50,000
    ========================= ======================================================= ==========================

    Where a set has nothing to validate on, a share of its training pictures does. Names of ImageNet's classes are those
    that open_clip uses for zero-shot classification, found by WordNet number, so that a part of the classes will do.

    Args:
        name: of the class in ``torchvision.datasets``.
        root: the folder that torchvision calls so, too.
        download: fetch what is missing, on one process of each machine, before the others look. ImageNet cannot be
            fetched.
        templates: ``None`` takes those that suit the set; see :class:`MapStyleDataModule`.
        others: of :class:`MapStyleDataModule`.
    """

    def __init__(
        self,
        name: SetName,
        root: str,
        download: bool = False,
        templates: Templates | None = None,
        **others: Any,
    ) -> None:
        if name not in _SETS:
            raise ValueError(f"`data.init_args.name` must be one of {', '.join(_SETS)}, got {name!r}.")
        if download and name == "ImageNet":
            raise ValueError(f"`data.init_args.download` must be false for ImageNet, got true. {_NO_DOWNLOAD}")
        super().__init__(templates=templates or [_SETS[name].template], **others)
        self.set_name: SetName = name
        self.root, self.download = root, download

    @override
    def prepare_data(self) -> None:
        """Fetch what is missing, if asked to.

        Raises:
            ValueError: it cannot be fetched.
        """
        if not self.download:
            return
        try:
            _SETS[self.set_name].fetch(Path(self.root))
        except _ERRORS as error:
            raise ValueError(
                f"{self.set_name} cannot be fetched into {self.root}: {error}. Put its files there by hand: "
                f"{_SETS[self.set_name].layout}."
            ) from error

    @override
    def open_parts(self) -> Parts:
        try:
            return _SETS[self.set_name].open(Path(self.root))
        except _ERRORS as error:
            reason = (str(error) or type(error).__name__).rstrip(". ")
            raise ValueError(
                f"Expected {self.set_name} in {self.root}, with {_SETS[self.set_name].layout} below it, but "
                f"torchvision says: {reason}. {self._way_out()}"
            ) from error

    def _way_out(self) -> str:
        layout = re.split("[/ ]", _SETS[self.set_name].layout)
        inside = [part for part in Path(self.root).parts[-2:] if part in layout]
        if inside:
            above = Path(*Path(self.root).parts[: -len(inside)])
            return f"That folder lies within the set: give the one above, `data.init_args.root: {above}`."
        if self.set_name == "ImageNet":
            return _NO_DOWNLOAD
        return "Give the folder that holds it, or fetch it with `data.init_args.download: true`."


def _open_cifar(kind: type[datasets.CIFAR10], root: Path) -> Parts:
    return _parts_of_arrays({split: kind(root, train=split == "train") for split in ("train", "test")})


def _open_fashion_mnist(root: Path) -> Parts:
    """Also as published, with gzip: unpacked for the moment, since the folder may not be ours to write in."""
    packed = [file for folder in (root / "FashionMNIST" / "raw", root) for file in folder.glob("*-ubyte.gz")]
    if not packed or any((root / "FashionMNIST" / "raw").glob("*-ubyte")):
        return _parts_of_arrays({split: datasets.FashionMNIST(root, split == "train") for split in ("train", "test")})
    with TemporaryDirectory() as place:
        raw = Path(place) / "FashionMNIST" / "raw"
        raw.mkdir(parents=True)
        for file in packed:
            extract_archive(str(file), str(raw))
        return _open_fashion_mnist(Path(place))


def _parts_of_arrays(found: dict[str, Any]) -> Parts:
    sources = {}
    for split, data in found.items():
        pixels = np.asarray(data.data)  # [N, H, W], or [N, H, W, 3]
        planes = np.moveaxis(pixels.reshape(*pixels.shape[:3], -1), 3, 1)
        sources[split] = ArraySource(planes, np.asarray(data.targets), data.classes, f"{split}/")
    return Parts(sources["train"], tests={"test": sources["test"]})


def _open_pets(root: Path) -> Parts:
    def part(split: str) -> FilesSource:
        found = datasets.OxfordIIITPet(root, split)
        return _files(found._base_folder, found._images, found._labels, found.classes)

    return Parts(part("trainval"), tests={"test": part("test")})


def _open_eurosat(root: Path) -> Parts:
    found = datasets.EuroSAT(root)
    names = [re.sub("(?<=[a-z])(?=[A-Z])", " ", name) for name in found.classes]  # AnnualCrop
    return Parts(_files(found._data_folder, [path for path, _ in found.samples], found.targets, names))


def _open_imagenet(root: Path) -> Parts:
    def part(split: str) -> FilesSource:
        found = datasets.ImageFolder(root / split)
        names = names_of_numbers(found.classes, found.root)
        return _files(found.root, [path for path, _ in found.samples], found.targets, list(names.values()))

    return Parts(part("train"), part("val"))


def _files(
    folder: str | Path, paths: Sequence[str | Path], labels: Sequence[int], class_names: Sequence[str]
) -> FilesSource:
    start = len(os.fspath(folder).rstrip(os.sep)) + 1
    names = [os.fspath(path)[start:].replace(os.sep, "/") for path in paths]
    return FilesSource(folder, names, np.array(labels, dtype=np.int64), class_names)


@dataclass(frozen=True)
class _Set:
    """How torchvision has a set: a file of its layout, how it is opened and fetched, and what suits it as a prompt."""

    layout: str
    open: Callable[[Path], Parts]
    fetch: Callable[[Path], Any]
    template: str = "a photo of a {}."


_SETS: dict[str, _Set] = {
    "CIFAR10": _Set(
        "cifar-10-batches-py/data_batch_1",
        lambda root: _open_cifar(datasets.CIFAR10, root),
        lambda root: datasets.CIFAR10(root, download=True),
    ),
    "CIFAR100": _Set(
        "cifar-100-python/train",
        lambda root: _open_cifar(datasets.CIFAR100, root),
        lambda root: datasets.CIFAR100(root, download=True),
    ),
    "OxfordIIITPet": _Set(
        "oxford-iiit-pet/annotations/trainval.txt",
        _open_pets,
        lambda root: datasets.OxfordIIITPet(root, download=True),
        "a photo of a {}, a type of pet.",
    ),
    "EuroSAT": _Set(
        "eurosat/2750/AnnualCrop",
        _open_eurosat,
        lambda root: datasets.EuroSAT(root, download=True),
        "a satellite photo of {}.",
    ),
    "FashionMNIST": _Set(
        "FashionMNIST/raw/train-images-idx3-ubyte",
        _open_fashion_mnist,
        lambda root: datasets.FashionMNIST(root, download=True),
    ),
    "ImageNet": _Set("train/n01440764 and val/n01440764", _open_imagenet, lambda root: None),
}
