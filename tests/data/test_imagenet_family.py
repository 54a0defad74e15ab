"""Small trees in the layouts of ImageNet's test sets, with real drawings, against readers of a few lines."""

import functools
import json

import numpy as np
import pytest
import torch
from open_clip import IMAGENET_CLASSNAMES
from PIL import Image

from siglightning.batch import InputSpec
from siglightning.cli import main
from siglightning.data import (
    FolderDataModule,
    ImageNetTestDataModule,
    PictogramArchive,
    PicturesDataModule,
    TorchvisionDataModule,
)
from siglightning.data.images import decode

ARCHIVE = functools.cache(PictogramArchive.open)
WORDNET = {"n01440764": 0, "n02123045": 281, "n07753592": 954}  # tench, tabby cat, banana
SPEC = InputSpec(32, lambda captions: torch.zeros(len(captions), 2, dtype=torch.int64))


def drawing(number):
    """uint8 ``[64, 64, 3]``."""
    return ARCHIVE().read_image(number * 40 % 9000).permute(1, 2, 0).numpy()


def write(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawing(number)).save(path, quality=95)


def made(name, root, **options):
    data = ImageNetTestDataModule(name, str(root), **options)
    data.input_spec = SPEC
    data.setup("test")
    return data


def write_wordnet(root, prefix=""):
    for place, number in enumerate(WORDNET):
        write(root / number / f"{prefix}{number}_{place}.JPEG", place)
        write(root / number / f"{prefix}{number}_{place + 3}.JPEG", place + 3)


@pytest.mark.parametrize(
    ("name", "inner", "classes"),
    [
        ("imagenet", "", 1000),
        ("imagenet", "val", 1000),
        ("imagenet_v2", "imagenetv2-wordnet", 1000),
        ("imagenet_a", "imagenet-a", 3),
        ("imagenet_r", "imagenet-r", 3),
        ("imagenet_sketch", "sketch", 1000),
    ],
)
def test_folders_with_wordnet_numbers(tmp_path, name, inner, classes):
    write_wordnet(tmp_path / inner)
    data = made(name, tmp_path)
    assert (data.test_set_names, len(data.class_names), len(data.prompt_templates)) == ([name], classes, 80)
    samples = [data.test_sets[name][row] for row in range(6)]
    for sample in samples:
        number = sample["id"].rpartition("/")[0]
        assert data.class_names[sample["label"]] == IMAGENET_CLASSNAMES[WORDNET[number]]
        assert classes == 3 or sample["label"] == WORDNET[number]


def test_version_two_has_classes_by_number(tmp_path):
    """In the order of text, 10 comes before 9: who numbers the folders gets almost every label wrong."""
    root = tmp_path / "imagenetv2-matched-frequency-format-val"
    for label in (0, 9, 10, 100, 999):
        write(root / str(label) / f"{label}.jpeg", label)
    data = made("imagenet_v2", tmp_path)
    found = {sample["id"]: sample["label"] for sample in (data.test_sets["imagenet_v2"][row] for row in range(5))}
    assert found == {f"{label}/{label}.jpeg": label for label in (0, 9, 10, 100, 999)}
    assert data.class_names == list(IMAGENET_CLASSNAMES)
    (root / "1000").mkdir()
    with pytest.raises(ValueError, match=r"Expected folders 0 \.\.\. 999 .* got 1000"):
        ImageNetTestDataModule("imagenet_v2", str(tmp_path)).open_parts()


@pytest.mark.parametrize("folder", [".", "val/n01440764"])
def test_real_has_several_labels_by_the_pictures_number(tmp_path, folder):
    from timm.data import RealLabelsImagenet

    names = [f"ILSVRC2012_val_{number:08d}.JPEG" for number in range(1, 50_001)]
    truth = RealLabelsImagenet(names).real_labels
    assert sum(bool(labels) for labels in truth.values()) == 46_837  # as published
    for number in range(1, 41):
        write(tmp_path / folder / names[number - 1], number)
    data = made("imagenet_real", tmp_path)
    labelled = [name for name in names[:40] if truth[name]]
    assert len(labelled) < 40 == len(names[:40])
    found = {}
    for row in range(len(data.test_sets["imagenet_real"])):
        sample = data.test_sets["imagenet_real"][row]
        found[sample["id"].rpartition("/")[2]] = sample["label"].nonzero().flatten().tolist()
    assert found == {name: sorted(truth[name]) for name in labelled}
    assert any(len(labels) > 1 for labels in found.values())


MAPPINGS = {
    "folder_to_objectnet_label.json": {
        "Alarm_clock": "Alarm clock",
        "Still_Camera": "Still Camera",
        "Air_freshener": "Air freshener",
        "Banana": "Banana",
    },
    "objectnet_to_imagenet_1k.json": {
        "Alarm clock": "analog clock",
        "Banana": "banana",
        "Still Camera": "reflex camera",
    },
}


def write_objectnet(root):
    for name, content in MAPPINGS.items():
        (root / "mappings").mkdir(parents=True, exist_ok=True)
        (root / "mappings" / name).write_text(json.dumps(content))
    for place, folder in enumerate(MAPPINGS["folder_to_objectnet_label.json"]):
        framed = Image.new("RGB", (68, 68), (255, 0, 0))
        framed.paste(Image.fromarray(drawing(place)), (2, 2))
        (root / "images" / folder).mkdir(parents=True)
        framed.save(root / "images" / folder / f"{place:015x}.png")
    return root


@pytest.mark.parametrize("shared", [True, False])
def test_objectnet_reads_its_own_map_and_cuts_the_border(tmp_path, shared):
    write_objectnet(tmp_path / "objectnet-1.0")
    data = made("objectnet", tmp_path, shared_classes=shared, templates="names")
    expected = ["alarm clock", "banana", "still camera"]
    assert data.class_names == (expected if shared else ["air freshener", *expected])
    source = data.open_parts().train
    assert len(source) == len(data.class_names)
    for row in range(len(source)):
        raw, path = source.read(row), tmp_path / "objectnet-1.0" / "images" / source.key(row)
        framed = decode(path.read_bytes())
        assert raw.image.shape == (3, 64, 64)
        np.testing.assert_array_equal(raw.image, framed[:, 2:66, 2:66])
        assert source.class_names[raw.labels[0]].replace(" ", "_") == source.key(row).split("/")[0].lower()


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        ("objectnet", lambda root: (root / "mappings/objectnet_to_imagenet_1k.json").unlink(), "belongs to ObjectNet"),
        ("objectnet", lambda root: (root / "mappings/objectnet_to_imagenet_1k.json").write_text("{"), "is not JSON"),
        ("objectnet", lambda root: (root / "mappings/objectnet_to_imagenet_1k.json").write_text("[1]"), "JSON object"),
        ("objectnet", lambda root: (root / "images").rename(root / "pictures"), "found none of them"),
        ("imagenet_a", lambda root: None, "WordNet numbers.* got images"),
        ("imagenet_real", lambda root: None, "ILSVRC2012_val_00000001.JPEG in .* found none"),
        ("imagenet_v2", lambda root: None, "WordNet numbers.* got images"),
        ("imagenet_x", lambda root: None, "must be one of imagenet, imagenet_real, .*, got 'imagenet_x'"),
    ],
)
def test_other_folders_are_refused(tmp_path, name, spoil, message):
    spoil(write_objectnet(tmp_path))
    with pytest.raises(ValueError, match=message):
        ImageNetTestDataModule(name, str(tmp_path)).open_parts()


def test_nothing_trains_on_them(tmp_path):
    write_wordnet(tmp_path)
    data = ImageNetTestDataModule("imagenet", str(tmp_path))
    data.input_spec = SPEC
    with pytest.raises(ValueError, match=r"imagenet is for tests alone\. Train on other data"):
        data.setup("fit")
    with pytest.raises(ValueError, match="which does not exist"):
        ImageNetTestDataModule("imagenet", str(tmp_path / "gone")).open_parts()


def test_sets_with_other_classes_stand_beside_the_data(tmp_path):
    """Their loaders follow those of the data, bring no captions, and know their own classes and prompts."""
    for number in range(20):
        write(tmp_path / "pets" / ["cat", "dog"][number % 2] / f"{number}.png", number)
    write_objectnet(tmp_path / "objectnet")
    sets = {
        "objects": ImageNetTestDataModule("objectnet", str(tmp_path / "objectnet"), templates="imagenet_simple"),
        "again": FolderDataModule(str(tmp_path / "pets"), templates="cifar", eval_batch_size=3),
    }
    data = FolderDataModule(str(tmp_path / "pets"), zeroshot_sets=sets, global_batch_size=4, val_fraction=0.5)
    data.input_spec = SPEC
    data.setup()
    assert data.val_set_names == ["val", "objects", "again"]
    assert data.test_set_names == ["validation", "objects", "again"]
    assert [len(data.classes_of(name).names) for name in data.test_set_names] == [2, 3, 2]
    assert [len(data.classes_of(name).templates) for name in data.val_set_names] == [1, 7, 18]
    for loaders in (data.val_dataloader(), data.test_dataloader()):
        own, objects, again = (list(loader) for loader in loaders)
        assert "text" in own[0]
        assert "text" not in objects[0]
        assert sum(len(batch["label"]) for batch in objects) == 3
        assert len(again[0]["label"]) == 2  # a tenth of 20
    none = FolderDataModule(str(tmp_path / "pets"), zeroshot_sets={"pictures": PicturesDataModule(str(tmp_path))})
    none.input_spec = SPEC
    with pytest.raises(ValueError, match=r"Expected classes in `data.init_args.zeroshot_sets.pictures`"):
        none.setup("test")
    for taken in ("val", "validation"):
        twice = FolderDataModule(str(tmp_path / "pets"), zeroshot_sets={taken: sets["again"]}, val_fraction=0.5)
        twice.input_spec = SPEC
        with pytest.raises(ValueError, match=f"than those of the data's own sets, got '{taken}'"):
            twice.setup("test")


def test_the_validation_set_is_that_of_torchvision(tmp_path):
    write_wordnet(tmp_path / "train")
    write_wordnet(tmp_path / "val")
    whole = ImageNetTestDataModule("imagenet", str(tmp_path)).open_parts().train
    part = TorchvisionDataModule("ImageNet", str(tmp_path)).open_parts().val
    for row in range(6):
        assert whole.key(row) == part.key(row)
        assert whole.class_names[whole.read(row).labels[0]] == part.class_names[part.read(row).labels[0]]


def test_the_config_is_read(capsys):
    assert main(["test", "--config", "quickstart", "--config", "evaluation/zeroshot_sets", "--print_config"]) == 0
    printed = capsys.readouterr().out
    assert printed.count("class_path: siglightning.data.ImageNetTestDataModule") == 4
    assert "templates: cifar" in printed
