"""Million-AID in the tree of folders that it is published in, against a reader of a few lines."""

import functools

import numpy as np
import pytest
import torch
from PIL import Image

from siglightning.batch import InputSpec
from siglightning.cli import main
from siglightning.data import MillionAidDataModule
from siglightning.data.images import decode
from siglightning.data.pictograms import PictogramArchive
from siglightning.data.sources import MILLION_AID_LABELS, MILLION_AID_SCENES

PLACES = [
    "agriculture_land/arable_land/dry_field",
    "agriculture_land/grassland/meadow",
    "commercial_land/commercial_area",
    "transportation_land/airport_area/runway",
    "water_area/beach",
]
ARCHIVE = functools.cache(PictogramArchive.open)


def jpeg(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = ARCHIVE().read_image(number * 20).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, "JPEG", quality=95)


def write_million_aid(root):
    for number in range(30):
        jpeg(root / "train" / PLACES[number % 5] / f"P{number:07d}.jpg", number)
    for number in range(30, 37):
        jpeg(root / "test" / PLACES[number % 5] / f"P{number:07d}.jpg", number)
    return root


@pytest.fixture
def root(tmp_path):
    return write_million_aid(tmp_path)


@pytest.mark.parametrize("task", ["multi-class", "multi-label"])
def test_labels_are_the_folders(root, task):
    parts = MillionAidDataModule(str(root), task).open_parts()
    for split, source in (("train", parts.train), ("test", parts.tests["test"])):
        files = {str(path.relative_to(root / split)): path for path in (root / split).rglob("*.jpg")}
        assert [source.key(i) for i in range(len(source))] == sorted(files)
        assert source.one_label == (task == "multi-class")
        assert len(source.class_names) == (51 if task == "multi-class" else 73)
        for index in range(len(source)):
            path, raw = files[source.key(index)], source.read(index)
            *above, scene = source.key(index).split("/")[:-1]
            names = [source.class_names[label] for label in raw.labels]
            assert names == ([scene] if task == "multi-class" else [*above, scene])
            assert raw.image == path.read_bytes()
            difference = decode(raw.image).permute(1, 2, 0).int() - np.asarray(Image.open(path), dtype=int)
            assert difference.abs().max() <= 4  # two decoders may round colours differently


def test_names_of_classes():
    """Counts as published; numbers are those of the sorted names, with which other readers number, too."""
    assert (len(MILLION_AID_SCENES), len(MILLION_AID_LABELS)) == (51, 73)
    for names in (MILLION_AID_SCENES, MILLION_AID_LABELS):
        assert list(names) == sorted(set(names))
    assert set(MILLION_AID_SCENES) < set(MILLION_AID_LABELS)
    assert [MILLION_AID_SCENES[number] for number in (0, 4, 50)] == ["apartment", "basketball_court", "works"]


def test_samples_of_both_tasks(root):
    def built(task):
        module = MillionAidDataModule(str(root), task, val_fraction=0.2, global_batch_size=4)
        module.input_spec = InputSpec(32, lambda captions: torch.zeros(len(captions), 2, dtype=torch.int64))
        module.setup()
        return module

    single, multi = built("multi-class"), built("multi-label")
    assert (len(single.train_set), len(single.val_set), single.test_set_names) == (24, 6, ["test"])
    sample = single.test_sets["test"][0]
    assert sample["id"] == "agriculture_land/arable_land/dry_field/P0000030.jpg"
    assert sample["captions"] == ["a satellite image of a dry field"]
    assert single.class_names[sample["label"]] == "dry field"
    sample = multi.test_sets["test"][0]
    on = [multi.class_names[number] for number in sample["label"].nonzero()[:, 0]]
    assert (on, len(sample["label"])) == (["agriculture land", "arable land", "dry field"], 73)
    assert sample["captions"] == [
        "a satellite image of a agriculture land",
        "a satellite image of a arable land",
        "a satellite image of a dry field",
    ]
    assert single.fingerprint != multi.fingerprint


def test_test_pictures_without_labels_are_not_used(root):
    for path in list((root / "test").rglob("*.jpg")):
        path.rename(root / "test" / path.name)
    for folder in sorted((path for path in (root / "test").rglob("*") if path.is_dir()), reverse=True):
        folder.rmdir()
    assert MillionAidDataModule(str(root)).open_parts().tests == {}


def packed(root):
    root.mkdir()
    (root / "train.zip").write_bytes(b"PK")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda root: jpeg(root / PLACES[0] / "P1.jpg", 1),
            "pictures in .*train, which does not exist. Give the folder",
        ),
        (packed, r"which does not exist\. Unpack .*train\.zip there"),
        (lambda root: (root / "train").mkdir(parents=True), "at least one picture in .*train, found none"),
        (lambda root: jpeg(root / "train" / "beach" / "P1.jpg", 1), r"LAND/SCENE .* got pictures in beach\. Other"),
        (lambda root: jpeg(root / "train" / "P1.jpg", 1), "got pictures in that folder itself"),
        (
            lambda root: jpeg(root / "train" / "train" / PLACES[1] / "P1.jpg", 1),
            "pictures in train/agriculture_land",
        ),
        (lambda root: jpeg(root / "train" / "water" / "beach" / "P1.jpg", 1), "got pictures in water/beach"),
        (lambda root: jpeg(root / "train" / "water_area" / "sea" / "P1.jpg", 1), "got pictures in water_area/sea"),
    ],
)
def test_other_folders_are_refused(tmp_path, make, message):
    make(tmp_path / "root")
    with pytest.raises(ValueError, match=message):
        MillionAidDataModule(str(tmp_path / "root")).open_parts()


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="task` must be multi-class or multi-label, got 'single'"):
        MillionAidDataModule("somewhere", "single")


def test_the_config_is_read(capsys):
    assert main(["fit", "--config", "quickstart", "--config", "data/million_aid", "--print_config"]) == 0
    assert "class_path: siglightning.data.MillionAidDataModule" in capsys.readouterr().out
