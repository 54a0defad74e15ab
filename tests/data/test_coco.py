"""COCO captions in their official files and in Karpathy's, against readers of a few lines."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from siglightning.batch import InputSpec
from siglightning.data import BadSampleError, CocoCaptionsDataModule, CocoSource, SampleKey
from siglightning.data.images import decode
from siglightning.data.pictograms import PictogramArchive

PARTS = {"train": range(0, 12), "val": range(12, 20)}


def name_of(number, part, year):
    """File names as COCO has them: with the part in 2014, a bare number since."""
    return f"COCO_{part}2014_{number:012d}.jpg" if year == 2014 else f"{number:012d}.jpg"


def said_of(number):
    return [f"picture {number}, said {time}" for time in range(5 + number % 2)]


def official(numbers, part, year):
    images = [
        {"license": 3, "file_name": name_of(n, part, year), "height": 64, "width": 64, "id": 1000 + n} for n in numbers
    ]
    annotations = [
        {"image_id": 1000 + n, "id": 10 * n + time, "caption": text}
        for n in numbers
        for time, text in enumerate(said_of(n))
    ]
    mixed = np.random.default_rng(0).permutation(len(annotations))  # captions do not stand in the pictures' order
    annotations = [annotations[place] for place in mixed]
    return {"info": {"year": year}, "licenses": [], "images": images[::-1], "annotations": annotations}


def karpathy(number, part):
    split = "train" if part == "train" else ("restval", "val", "test", "test")[number % 4]
    name, ids = name_of(number, part, 2014), [10 * number + time for time in range(len(said_of(number)))]
    sentences = [
        {"tokens": text.split(), "raw": text, "imgid": number, "sentid": one}
        for one, text in zip(ids, said_of(number), strict=True)
    ]
    image = {"filepath": f"{part}2014", "sentids": ids, "filename": name, "imgid": number, "split": split}
    return image | {"sentences": sentences, "cocoid": 1000 + number}


def write_coco(root):
    """Twenty real pictures in the folders and files of both years, and Karpathy's division of those of 2014."""
    (root / "annotations").mkdir()
    for part, numbers in PARTS.items():
        for year in (2014, 2017):
            (root / f"{part}{year}").mkdir()
            for number in numbers:
                pixels = PictogramArchive.open().read_image(number * 40).permute(1, 2, 0).numpy()
                Image.fromarray(pixels).save(root / f"{part}{year}" / name_of(number, part, year), quality=95)
            content = official(numbers, part, year)
            (root / "annotations" / f"captions_{part}{year}.json").write_text(json.dumps(content))
    images = [karpathy(number, part) for part, numbers in PARTS.items() for number in numbers]
    (root / "dataset_coco.json").write_text(json.dumps({"images": images, "dataset": "coco"}))
    return root


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    return write_coco(tmp_path_factory.mktemp("coco"))


def official_by_hand(root, year, part):
    content = json.loads((root / "annotations" / f"captions_{part}{year}.json").read_text())
    for image in content["images"]:
        captions = [one["caption"] for one in content["annotations"] if one["image_id"] == image["id"]]
        yield image["file_name"], root / f"{part}{year}" / image["file_name"], captions


def karpathy_by_hand(root, splits):
    for image in json.loads((root / "dataset_coco.json").read_text())["images"]:
        if image["split"] in splits:
            path = root / image["filepath"] / image["filename"]
            yield image["filename"], path, [sentence["raw"] for sentence in image["sentences"]]


def assert_same(source, expected):
    expected = list(expected)
    assert [source.key(row) for row in range(len(source))] == [name for name, _, _ in expected]
    for row, (_, path, captions) in enumerate(expected):
        raw = source.read(row)
        assert raw.captions == captions
        assert len(captions) >= 5
        difference = decode(raw.image).permute(1, 2, 0).numpy() - np.asarray(Image.open(path)).astype(int)
        assert np.abs(difference).max() <= 4  # two decoders of JPEG


@pytest.mark.parametrize("year", [2014, 2017])
def test_the_official_files(coco, year):
    for part, numbers in PARTS.items():
        source = CocoSource(coco, year, part)
        assert len(source) == len(numbers)
        assert_same(source, official_by_hand(coco, year, part))


@pytest.mark.parametrize("place", ["", "annotations"])
def test_karpathys_splits(coco, tmp_path, place):
    for entry in coco.iterdir():
        if entry.is_dir() and entry.name != "annotations":
            (tmp_path / entry.name).symlink_to(entry)
    (tmp_path / place).mkdir(exist_ok=True)
    (tmp_path / place / "dataset_coco.json").write_bytes((coco / "dataset_coco.json").read_bytes())
    for part, splits, count in (("train", ("train", "restval"), 14), ("val", ("val",), 2), ("test", ("test",), 4)):
        source = CocoSource(tmp_path, "karpathy", part)
        assert len(source) == count
        assert_same(source, karpathy_by_hand(coco, splits))


def built(root, splits):
    module = CocoCaptionsDataModule(str(root), splits, global_batch_size=4)
    module.input_spec = InputSpec(32, lambda texts: torch.tensor([[len(text)] for text in texts]))
    module.setup()
    return module


def test_one_caption_is_drawn_in_training_and_all_are_evaluated(coco):
    module = built(coco, "karpathy")
    assert module.test_set_names == ["test"]
    assert [len(part) for part in (module.train_set, module.val_set, module.test_sets["test"])] == [14, 2, 4]
    drawn = [module.train_set[SampleKey(3, epoch)] for epoch in range(300)]
    counts = Counter(sample["captions"][0] for sample in drawn)
    assert counts.keys() == set(module.train_set.source.read(3).captions)
    assert max(counts.values()) < 80  # of 300 in 6: 50, and four standard deviations
    again = built(coco, "karpathy").train_set
    assert [again[SampleKey(3, epoch)]["captions"] for epoch in range(9)] == [one["captions"] for one in drawn[:9]]
    (batch,) = module.test_dataloader()[0]
    expected = list(karpathy_by_hand(coco, ("test",)))
    assert batch["id"] == [name for name, _, _ in expected]
    assert batch["text_owner"].tolist() == [n for n, (_, _, captions) in enumerate(expected) for _ in captions]
    assert len(batch["text"]) == sum(len(captions) for _, _, captions in expected)


def test_official_validation_is_the_test(coco):
    module = built(coco, 2017)
    assert (module.test_set_names, len(module.val_set)) == (["validation"], 8)


@pytest.fixture
def copy(coco, tmp_path):
    """The files of 2017, to be changed."""
    for folder in ("annotations", "train2017", "val2017"):
        (tmp_path / folder).mkdir()
        for file in (coco / folder).iterdir():
            (tmp_path / folder / file.name).write_bytes(file.read_bytes())
    return tmp_path


def test_annotations_and_pictures_need_not_agree(copy):
    gone, silent = copy / "val2017" / name_of(13, "val", 2017), name_of(14, "val", 2017)
    gone.unlink()
    (copy / "val2017" / "000000999999.jpg").write_bytes(b"on disk only")
    file = copy / "annotations" / "captions_val2017.json"
    content = json.loads(file.read_text())
    content["annotations"] = [one for one in content["annotations"] if one["image_id"] != 1014]
    file.write_text(json.dumps(content))
    source = CocoSource(copy, 2017, "val")
    keys = [source.key(row) for row in range(len(source))]
    assert len(keys) == 7
    assert not {silent, "000000999999.jpg"} & set(keys)
    with pytest.raises(BadSampleError, match=f"unreadable: No such file or directory: .*{gone.name}"):
        source.read(keys.index(gone.name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda root: (root / "val2017").rename(root / "val"),
            r"Expected the pictures of .* in .*/val2017, which does",
        ),
        (
            lambda root: (root / "annotations").rename(root / "a"),
            r"captions_train2017.json, which does not exist. `root` m",
        ),
        (lambda root: overwrite(root, '{"images": []}'), r"does not hold captions as COCO has them: KeyError\('annota"),
        (
            lambda root: overwrite(root, '{"images": [{"file_'),
            r"does not hold captions as COCO has them: JSONDecodeErr",
        ),
        (lambda root: overwrite(root, '{"images": [], "annotations": []}'), "at least one row in .*captions_train2017"),
        (lambda root: overwrite(root, "[]"), "does not hold captions as COCO has them: TypeError"),
    ],
)
def test_mistakes_are_told(copy, change, message):
    change(copy)
    with pytest.raises(ValueError, match=message):
        CocoCaptionsDataModule(str(copy)).open_parts()


def overwrite(root, content):
    (root / "annotations" / "captions_train2017.json").write_text(content)


def test_karpathys_file_is_asked_for(copy):
    with pytest.raises(ValueError, match=r"dataset_coco.json or .*annotations/dataset_coco.json, which do not exist"):
        CocoCaptionsDataModule(str(copy), "karpathy").open_parts()
