"""The human-action set in the layouts that Kaggle and its users have, against readers of a few lines."""

import csv
import functools
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from siglightning.batch import InputSpec
from siglightning.cli import main
from siglightning.data import HumanActionDataModule
from siglightning.data.images import decode
from siglightning.data.pictograms import PictogramArchive

NAMES = [
    *("calling", "clapping", "cycling", "dancing", "drinking", "eating", "fighting", "hugging", "laughing"),
    *("listening_to_music", "running", "sitting", "sleeping", "texting", "using_laptop"),
]
ARCHIVE = functools.cache(PictogramArchive.open)


def jpeg(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = ARCHIVE().read_image(number * 10).permute(1, 2, 0).numpy()
    Image.fromarray(pixels).save(path, "JPEG", quality=95)


def class_folders(folder, numbers, spelling=str):
    for number in numbers:
        jpeg(folder / spelling(NAMES[number % 15]) / f"Image_{number}.jpg", number)


def kaggle(root, count=60):
    """Two tables and two flat folders; only the training table has labels."""
    rows = [(f"Image_{number}.jpg", NAMES[number * 7 % 15]) for number in range(1, count + 1)]
    for number, (name, _) in enumerate(rows):
        jpeg(root / "train" / name, number)
    with (root / "Training_set.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "label"), *rows])
    jpeg(root / "test" / "Image_1.jpg", 3)
    (root / "Testing_set.csv").write_text("filename\nImage_1.jpg\n")


def parts(root, **options):
    return HumanActionDataModule(str(root), **options).open_parts()


def contents(source, root):
    """Key and name of the class of every sample, once its picture is seen to be that of the file."""
    found = {}
    for index in range(len(source)):
        raw, path = source.read(index), root / source.key(index)
        assert raw.image == path.read_bytes()
        difference = decode(raw.image).permute(1, 2, 0).int() - np.asarray(Image.open(path), dtype=int)
        assert difference.abs().max() <= 4  # two decoders may round colours differently
        found[source.key(index)] = source.class_names[raw.labels[0]]
        assert len(raw.labels) == 1
    return found


@pytest.mark.parametrize("wrapped", ["", "Structured", "archive/Structured"])
def test_train_and_test_folders(tmp_path, wrapped):
    for part, numbers in (("train", range(45)), ("test", range(45, 60))):
        class_folders(tmp_path / wrapped / part, numbers)
    found = parts(tmp_path)
    assert (found.val, list(found.tests)) == (None, ["test"])
    for part, source in (("train", found.train), ("test", found.tests["test"])):
        assert source.class_names == NAMES
        root = tmp_path / wrapped / part
        expected = {f"{path.parent.name}/{path.name}": path.parent.name for path in root.rglob("*.jpg")}
        assert contents(source, root) == expected
    class_folders(tmp_path / wrapped / "val", range(15))
    assert len(parts(tmp_path).val) == 15


def test_one_folder_is_divided_class_by_class(tmp_path):
    class_folders(tmp_path, range(90))
    expected = {f"{path.parent.name}/{path.name}": path.parent.name for path in tmp_path.rglob("*.jpg")}
    found = parts(tmp_path, test_fraction=1 / 3)
    train, test = contents(found.train, tmp_path), contents(found.tests["test"], tmp_path)
    assert train | test == expected
    assert Counter(train.values()) == dict.fromkeys(NAMES, 4)
    assert Counter(test.values()) == dict.fromkeys(NAMES, 2)
    again, other = (parts(tmp_path, test_fraction=1 / 3, split_seed=seed).tests["test"] for seed in (0, 1))
    assert [again.key(i) for i in range(30)] == list(test)
    assert [other.key(i) for i in range(30)] != list(test)
    assert parts(tmp_path, test_fraction=0).tests == {}


def test_spelling_of_folders_does_not_matter(tmp_path):
    class_folders(tmp_path, range(30), lambda name: name.replace("_to_", "to").replace("_", " ").title())
    assert (tmp_path / "Listeningtomusic").is_dir()
    found = parts(tmp_path, test_fraction=0).train
    assert found.class_names == NAMES
    for path, name in contents(found, tmp_path).items():
        assert path.partition("/")[0].lower().replace(" ", "") == name.replace("_", "")


@pytest.mark.parametrize("wrapped", ["", "Human Action Recognition"])
def test_kaggles_tables(tmp_path, wrapped):
    (tmp_path / wrapped).mkdir(exist_ok=True)
    kaggle(tmp_path / wrapped)
    with (tmp_path / wrapped / "Training_set.csv").open(newline="") as file:
        expected = {row["filename"]: row["label"] for row in csv.DictReader(file)}
    found = parts(tmp_path, test_fraction=0.25)
    train = contents(found.train, tmp_path / wrapped / "train")
    test = contents(found.tests["test"], tmp_path / wrapped / "train")
    assert train | test == expected
    assert (len(train), len(test)) == (45, 15)
    assert Counter(test.values()) == dict.fromkeys(NAMES, 1)
    assert parts(tmp_path, test_fraction=0).train.fingerprint != found.train.fingerprint


def test_unlabelled_test_pictures_do_not_take_the_place_of_labelled_ones(tmp_path):
    class_folders(tmp_path / "train", range(60))
    for number in range(5):
        jpeg(tmp_path / "test" / f"Image_{number}.jpg", number)
    found = parts(tmp_path, test_fraction=0.25)
    assert (len(found.train), len(found.tests["test"])) == (45, 15)


def test_it_says_what_people_do(tmp_path):
    class_folders(tmp_path, range(60))
    module = HumanActionDataModule(str(tmp_path), test_fraction=0.25, val_fraction=0.2, global_batch_size=8)
    module.input_spec = InputSpec(32, lambda captions: torch.zeros(len(captions), 2, dtype=torch.int64))
    module.setup()
    assert (len(module.train_set), len(module.val_set), len(module.test_sets["test"])) == (36, 9, 15)
    said = {sample["label"]: sample["captions"] for sample in module.test_sets["test"].__getitems__(list(range(15)))}
    assert said[14] == ["a photo of a person using laptop."]
    assert module.class_names[9] == "listening to music"


def without(name):
    return lambda root: class_folders(root, [number for number in range(30) if NAMES[number % 15] != name])


def misspelt(root):
    class_folders(root, range(30), lambda name: name.replace("hugging", "huging"))


def twice(root):
    class_folders(root, range(30))
    class_folders(root, range(13, 14), str.title)


def changed_table(old, new):
    def make(root):
        kaggle(root)
        table = root / "Training_set.csv"
        table.write_text(table.read_text().replace(old, new))

    return make


def lost_pictures(root):
    kaggle(root)
    for number in range(3, 9):
        (root / "train" / f"Image_{number}.jpg").unlink()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "Expected the human-action set in .* which does not exist"),
        (
            lambda root: (root / "pictures").mkdir(parents=True),
            "one subfolder a class in .*pictures, found none",
        ),
        (without("hugging"), "the 15 human actions in .*missing: hugging; others there: none"),
        (misspelt, r"missing: hugging; others there: huging \(2 pictures\)\. FolderDataModule"),
        (twice, r"missing: none; others there: Texting \(1 pictures\), texting \(2 pictures\)"),
        (
            changed_table("sitting", "siting"),
            r"in .*\.csv, .*missing: sitting; others there: siting \(4 pictures\)",
        ),
        (changed_table(",calling", ","), r"missing: calling; others there: no label \(4 pictures\)"),
        (changed_table("filename,label", "image,label"), "columns filename and label in .*, got image, label"),
        (
            lost_pictures,
            r"the 60 pictures of .* in .*train, 6 are missing: Image_3.jpg, .*Image_5.jpg \.\.\.",
        ),
    ],
)
def test_other_files_are_refused_with_what_was_found(tmp_path, make, message):
    make(tmp_path / "root")
    with pytest.raises(ValueError, match=message):
        parts(tmp_path / "root")


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"test_fraction` must be at least 0 and below 1, got 1\.0"):
        HumanActionDataModule("somewhere", test_fraction=1.0)


def test_the_config_is_read(capsys):
    assert main(["fit", "--config", "quickstart", "--config", "data/human_action", "--print_config"]) == 0
    assert "class_path: siglightning.data.HumanActionDataModule" in capsys.readouterr().out
