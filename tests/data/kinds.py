"""Every kind of data, small and as it lies on disk: how to write it, how to open it, and what its samples have."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import zoo
from test_chunks import NAMES, encoded, sample, write
from test_coco import write_coco
from test_crossmodal3600 import write_xm3600
from test_hugging_face import make_rows, write_saved
from test_human_action import kaggle
from test_million_aid import write_million_aid
from test_tars import img2dataset_files, picture, write_tar
from test_torchvision_sets import RAW, write_cifar, write_eurosat, write_fashion, write_imagenet, write_pets

from siglightning.data import (
    BaseDataModule,
    CocoCaptionsDataModule,
    CollageDataModule,
    Columns,
    Crossmodal3600DataModule,
    FolderDataModule,
    HuggingFaceDataModule,
    HumanActionDataModule,
    ImageNetTestDataModule,
    LitDataDataModule,
    Members,
    MillionAidDataModule,
    PictogramDataModule,
    PicturesDataModule,
    SyntheticDataModule,
    TableDataModule,
    TorchvisionDataModule,
    WebDatasetDataModule,
)

SIZES = {"global_batch_size": 6, "eval_batch_size": 8}
CHECKSUMS = pytest.MonkeyPatch()  # torchvision's, for those of the small files; to be undone by who opens them


@dataclass(frozen=True)
class Kind:
    """A kind of data.

    Attributes:
        open: writes it below a folder, and opens it.
        captions: whether samples have captions of their own, not only those that templates make of classes.
        labels: how many a sample has.
        trains: whether a task may train on it.
    """

    open: Callable[[Path], BaseDataModule]
    captions: bool = False
    labels: Literal["none", "one", "several"] = "none"
    trains: bool = True


def folder(root):
    for name, content, _, kind in zoo.pictures():
        (root / kind).mkdir(exist_ok=True)
        (root / kind / f"{name}.png").write_bytes(content)
    return FolderDataModule(str(root), **SIZES)


def pictures(root):
    folder(root)
    return PicturesDataModule(str(root), **SIZES)


def table(captions=(), label=None):
    def opened(root):
        lines = []
        for number, (name, content, words, kind) in enumerate(zoo.pictures()):
            (root / f"{name}.png").write_bytes(content)
            tags = [kind, *(["wild"] if number % 2 else [])]
            lines.append(json.dumps({"image": f"{name}.png", "words": words, "kind": kind, "tags": tags}))
        (root / "table.jsonl").write_text("\n".join(lines) + "\n")
        return TableDataModule(str(root / "table.jsonl"), columns=Columns("image", captions, label), **SIZES)

    return opened


def hugging_face(captions=(), label=None):
    def opened(root):
        columns = Columns("image", captions, label)
        return HuggingFaceDataModule(str(write_saved(root / "saved", make_rows())), columns, **SIZES)

    return opened


def tars(**options):
    def opened(root):
        paths = [str(write_tar(root / f"{shard:05d}.tar", img2dataset_files(shard, 9))) for shard in range(3)]
        return WebDatasetDataModule(paths, val=paths[:1], **SIZES, **options)

    return opened


def labelled_tars(label, **options):
    def opened(root):
        files = []
        for number in range(24):
            about = json.dumps({"tags": [NAMES[number % 3], *NAMES[:1]]}).encode()
            files += [(f"{number}.jpg", picture(number)), (f"{number}.cls", b"%d" % (number % 3))]
            files.append((f"{number}.json", about))
        tar = str(write_tar(root / "0.tar", files))
        return WebDatasetDataModule(tar, members=Members(("jpg",), (), label, **options), class_names=NAMES, **SIZES)

    return opened


def several(number):
    return {"image": encoded(number), "label": sorted({number % 3, number % 2})}


def chunks(function, columns, names=None):
    def opened(root):
        return LitDataDataModule(write(root / "chunks", function, 24), columns=columns, class_names=names, **SIZES)

    return opened


def coco(splits):
    return lambda root: CocoCaptionsDataModule(str(write_coco(root)), splits, **SIZES)


def million_aid(task):
    return lambda root: MillionAidDataModule(str(write_million_aid(root)), task, **SIZES)


def human_action(root):
    kaggle(root)
    return HumanActionDataModule(str(root), **SIZES)


def torchvision(name, lay_out, **options):
    def opened(root):
        lay_out(root)
        return TorchvisionDataModule(name, str(root), **SIZES | options)

    return opened


def cifar(name):
    def opened(root):
        return TorchvisionDataModule(name, str(write_cifar(root, name, CHECKSUMS)), **SIZES)

    return opened


def imagenet_a(root):
    write_imagenet(root)
    return ImageNetTestDataModule("imagenet_a", str(root / "train"), templates="names", **SIZES)


KINDS = {
    "synthetic": Kind(lambda root: SyntheticDataModule(24, 8, 8, **SIZES), True, "one"),
    "collages": Kind(lambda root: CollageDataModule("all", 24, 8, 8, **SIZES), labels="several"),
    "collages with one label": Kind(lambda root: CollageDataModule("one", 24, 8, 8, **SIZES), labels="one"),
    "pictograms": Kind(lambda root: PictogramDataModule(**SIZES), True, "one"),
    "pictograms with tags": Kind(lambda root: PictogramDataModule(targets="tags", **SIZES), True, "several"),
    "folder": Kind(folder, labels="one"),
    "pictures alone": Kind(pictures),
    "table of pictures": Kind(table()),
    "table of captions": Kind(table(["words"]), True),
    "table of classes": Kind(table(label="kind"), labels="one"),
    "table of lists of classes": Kind(table(label="tags"), labels="several"),
    "table of captions and classes": Kind(table(["words"], "kind"), True, "one"),
    "Hugging Face, captions": Kind(hugging_face(["caption", "others"]), True),
    "Hugging Face, classes": Kind(hugging_face(label="kind"), labels="one"),
    "Hugging Face, lists of classes": Kind(hugging_face(["caption"], "tags"), True, "several"),
    "tars of captions": Kind(tars(), True),
    "stream of tars": Kind(tars(resampled=True, samples_per_epoch=12, shuffle_buffer=4), True),
    "tars of classes": Kind(labelled_tars("cls"), labels="one"),
    "tars of lists of classes": Kind(labelled_tars("json:tags", multi_label=True), labels="several"),
    "chunks of captions": Kind(chunks(sample, Columns()), True),
    "chunks of captions and classes": Kind(chunks(sample, Columns(label="label"), NAMES), True, "one"),
    "chunks of lists of classes": Kind(chunks(several, Columns("image", (), "label"), NAMES), labels="several"),
    "COCO": Kind(coco(2017), True),
    "COCO, Karpathy's splits": Kind(coco("karpathy"), True),
    "Crossmodal-3600": Kind(lambda root: Crossmodal3600DataModule(str(write_xm3600(root)), **SIZES), True),
    "Million-AID": Kind(million_aid("multi-class"), labels="one"),
    "Million-AID, several labels": Kind(million_aid("multi-label"), labels="several"),
    "human action": Kind(human_action, labels="one"),
    "CIFAR-10": Kind(cifar("CIFAR10"), labels="one"),
    "CIFAR-100": Kind(cifar("CIFAR100"), labels="one"),
    "Fashion-MNIST": Kind(torchvision("FashionMNIST", lambda root: write_fashion(root / RAW, False)), labels="one"),
    "Oxford Pets": Kind(torchvision("OxfordIIITPet", write_pets, global_batch_size=3), labels="one"),
    "EuroSAT": Kind(torchvision("EuroSAT", write_eurosat), labels="one"),
    "ImageNet": Kind(torchvision("ImageNet", write_imagenet), labels="one"),
    "ImageNet-A": Kind(imagenet_a, labels="one", trains=False),
}
