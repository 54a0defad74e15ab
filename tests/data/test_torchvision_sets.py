"""torchvision's sets in the layouts that their makers publish, against readers of a few lines.

The real files cannot be had, so small ones of the same form stand for them, and in these tests alone torchvision's
lists of checksums are those of the small files: that it compares them is tested, too.
"""

import functools
import gzip
import hashlib
import pickle
import struct
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from siglightning.batch import InputSpec
from siglightning.cli import main
from siglightning.data import TorchvisionDataModule
from siglightning.data.images import BadSampleError, decode
from siglightning.data.pictograms import PictogramArchive

ARCHIVE = functools.cache(PictogramArchive.open)


def picture(number, step=1):
    """A real picture, uint8 ``[64 / step, 64 / step, 3]``."""
    return ARCHIVE().read_image(number * 40).permute(1, 2, 0).numpy()[::step, ::step]


def jpeg(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture(number)).save(path, "JPEG", quality=95)


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def module(name, root, **options):
    return TorchvisionDataModule(name, str(root), **options)


def built(name, root, **options):
    made = module(name, root, global_batch_size=2, **options)
    made.input_spec = InputSpec(32, lambda captions: torch.zeros(len(captions), 2, dtype=torch.int64))
    made.setup()
    return made


CIFAR = {
    "CIFAR10": ("cifar-10-batches-py", [f"data_batch_{i}" for i in range(1, 6)], "test_batch", "batches.meta"),
    "CIFAR100": ("cifar-100-python", ["train"], "test", "meta"),
}
CIFAR_NAMES = {"CIFAR10": ["airplane", "automobile", "bird"], "CIFAR100": ["apple", "aquarium_fish", "baby"]}


def write_cifar(root, name, monkeypatch):
    """Ten pictures in each file: pickles of dicts, pictures as rows of 1,024 red, 1,024 green and 1,024 blue values."""
    folder, training, test, meta = CIFAR[name]
    labels, names = ("labels", "label_names") if name == "CIFAR10" else ("fine_labels", "fine_label_names")
    place = root / folder
    place.mkdir(parents=True)
    for number, file in enumerate([*training, test]):
        rows = [picture(number * 10 + i, 2).transpose(2, 0, 1).reshape(-1) for i in range(10)]
        content = {labels: [(number + i) % 3 for i in range(10)], "data": np.stack(rows), "batch_label": file}
        if name == "CIFAR100":
            content["coarse_labels"] = [0] * 10
        (place / file).write_bytes(pickle.dumps(content, protocol=2))
    (place / meta).write_bytes(pickle.dumps({names: CIFAR_NAMES[name]}, protocol=2))
    kind = getattr(datasets, name)
    monkeypatch.setattr(kind, "train_list", [[file, md5(place / file)] for file in training])
    monkeypatch.setattr(kind, "test_list", [[test, md5(place / test)]])
    monkeypatch.setattr(kind, "meta", {**kind.meta, "md5": md5(place / meta)})
    return root


def read_cifar(root, name, split):
    """Pixels and labels, in the order of the files."""
    folder, training, test, _ = CIFAR[name]
    for file in training if split == "train" else [test]:
        content = pickle.loads((root / folder / file).read_bytes())
        for row, label in zip(content["data"], content.get("labels", content.get("fine_labels")), strict=True):
            yield row.reshape(3, 32, 32), label


@pytest.mark.parametrize("name", CIFAR)
def test_cifar(tmp_path, monkeypatch, name):
    parts = module(name, write_cifar(tmp_path, name, monkeypatch)).open_parts()
    for split, source in (("train", parts.train), ("test", parts.tests["test"])):
        expected = list(read_cifar(tmp_path, name, split))
        assert len(source) == len(expected) == (50 if (name, split) == ("CIFAR10", "train") else 10)
        assert (source.class_names, source.one_label) == (CIFAR_NAMES[name], True)
        for index, (pixels, label) in enumerate(expected):
            raw = source.read(index)
            assert raw.labels == [label]
            np.testing.assert_array_equal(raw.image, pixels)
            assert source.key(index) == f"{split}/{index:05d}"
    assert parts.train.fingerprint != parts.tests["test"].fingerprint
    made = built(name, tmp_path)
    assert made.class_names == [word.replace("_", " ") for word in CIFAR_NAMES[name]]
    assert made.prompt_templates == ["a photo of a {}."]
    assert (len(made.train_set) + len(made.val_set), made.test_set_names) == (len(parts.train), ["test"])
    np.testing.assert_array_equal(made.test_sets["test"][3]["image"], expected[3][0])


def test_a_changed_file_is_refused(tmp_path, monkeypatch):
    file = write_cifar(tmp_path, "CIFAR10", monkeypatch) / "cifar-10-batches-py" / "data_batch_3"
    content = bytearray(file.read_bytes())
    content[500] ^= 1
    file.write_bytes(content)
    with pytest.raises(ValueError, match=r"Expected CIFAR10 in .*, with cifar-10-batches-py/.* not found or corrupted"):
        module("CIFAR10", tmp_path).open_parts()


RAW = "FashionMNIST/raw"


def write_fashion(folder, packed):
    """Four IDX files: two zero bytes, 8 for bytes, the number of dimensions, these big-endian, and the values."""
    folder.mkdir(parents=True)
    written = {}
    for split, first, count in (("train", 0, 12), ("t10k", 12, 5)):
        pixels = np.stack([picture(first + i, 2)[:28, :28, 1] for i in range(count)])
        labels = np.arange(first, first + count, dtype=np.uint8) % 10
        written[split] = pixels, labels
        for kind, array in (("images-idx3", pixels), ("labels-idx1", labels)):
            content = struct.pack(f">BBBB{array.ndim}I", 0, 0, 8, array.ndim, *array.shape) + array.tobytes()
            name = f"{split}-{kind}-ubyte"
            if packed:
                (folder / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (folder / name).write_bytes(content)
    return written


@pytest.mark.parametrize(("inner", "packed"), [(RAW, False), (RAW, True), ("", True)])
def test_fashion_mnist(tmp_path, inner, packed):
    written = write_fashion(tmp_path / "data" / inner, packed)
    before = sorted(tmp_path.rglob("*"))
    parts = module("FashionMNIST", tmp_path / "data").open_parts()
    assert sorted(tmp_path.rglob("*")) == before  # nothing is unpacked into the user's folder
    for split, source in (("train", parts.train), ("t10k", parts.tests["test"])):
        pixels, labels = written[split]
        assert len(source) == len(labels)
        for index in range(len(source)):
            raw = source.read(index)
            assert raw.labels == [labels[index]]
            np.testing.assert_array_equal(raw.image, np.stack([pixels[index]] * 3))
    assert parts.train.class_names[0] == "T-shirt/top"
    made = built("FashionMNIST", tmp_path / "data")
    for loader in (made.train_dataloader(), made.val_dataloader()):  # gray pictures go through augmentation, too
        assert next(iter(loader))["image"].shape[1:] == (3, 32, 32)


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda content: content[:2000], "Compressed file ended"),
        (lambda content: gzip.compress(gzip.decompress(content)[:2000]), "invalid for input"),
        (lambda content: gzip.compress(b"<!DOCTYPE html>"), "AssertionError"),
    ],
)
def test_half_a_file_is_refused(tmp_path, spoil, reason):
    write_fashion(tmp_path / "data", packed=True)
    file = tmp_path / "data" / "train-images-idx3-ubyte.gz"
    file.write_bytes(spoil(file.read_bytes()))
    with pytest.raises(ValueError, match=rf"Expected FashionMNIST in .* torchvision says: .*{reason}"):
        module("FashionMNIST", tmp_path / "data").open_parts()


PETS = {  # file: number of the breed, 1 for a cat and 2 for a dog, number among these
    "trainval": ["Abyssinian_100 1 1 1", "american_bulldog_100 2 2 1", "Bengal_3 3 1 2", "Abyssinian_101 1 1 1"],
    "test": ["american_bulldog_7 2 2 1", "Bengal_103 3 1 2", "Abyssinian_2 1 1 1"],
}


def write_pets(root):
    base = root / "oxford-iiit-pet"
    (base / "annotations").mkdir(parents=True)
    for split, lines in PETS.items():
        (base / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
        for line in lines:
            jpeg(base / "images" / f"{line.split()[0]}.jpg", len(line))
    everything = "#Image CLASS-ID SPECIES BREED ID\n" + "\n".join(PETS["trainval"] + PETS["test"]) + "\n"
    (base / "annotations" / "list.txt").write_text(everything)
    return root


def test_oxford_pets(tmp_path):
    parts = module("OxfordIIITPet", write_pets(tmp_path)).open_parts()
    for split, source in (("trainval", parts.train), ("test", parts.tests["test"])):
        lines = (tmp_path / "oxford-iiit-pet" / "annotations" / f"{split}.txt").read_text().split("\n")[:-1]
        assert len(source) == len(lines)
        for index, line in enumerate(lines):
            name, number, *_ = line.split()
            path = tmp_path / "oxford-iiit-pet" / "images" / f"{name}.jpg"
            raw = source.read(index)
            assert (source.key(index), raw.labels) == (f"images/{name}.jpg", [int(number) - 1])
            assert raw.image == path.read_bytes()
            difference = decode(raw.image).permute(1, 2, 0).int() - np.asarray(Image.open(path), dtype=int)
            assert difference.abs().max() <= 4  # two decoders may round colours differently
    made = built("OxfordIIITPet", tmp_path)
    assert made.class_names == ["Abyssinian", "American Bulldog", "Bengal"]
    assert made.test_sets["test"][0]["captions"] == ["a photo of a American Bulldog, a type of pet."]


def test_a_part_of_the_pets(tmp_path):
    """A lost picture is a bad sample; a lost breed would shift the names of the others."""
    write_pets(tmp_path)
    (tmp_path / "oxford-iiit-pet" / "images" / "Bengal_3.jpg").unlink()
    with pytest.raises(BadSampleError, match="unreadable: No such file"):
        module("OxfordIIITPet", tmp_path).open_parts().train.read(2)
    (tmp_path / "oxford-iiit-pet" / "annotations" / "test.txt").write_text("Bengal_103 3 1 2\n")
    with pytest.raises(ValueError, match=r"Expected labels below 1, the number of classes, in .*pet, got 2\."):
        module("OxfordIIITPet", tmp_path).open_parts()


def write_eurosat(root):
    kinds = ["AnnualCrop", "Forest", "SeaLake"]
    for number in range(30):
        kind = kinds[number % 3]
        jpeg(root / "eurosat" / "2750" / kind / f"{kind}_{number // 3 + 1}.jpg", number)
    return root


def test_eurosat(tmp_path):
    made = built("EuroSAT", write_eurosat(tmp_path), val_fraction=0.2)
    assert made.class_names == ["Annual Crop", "Forest", "Sea Lake"]
    assert (len(made.train_set), len(made.val_set), made.test_set_names) == (24, 6, ["validation"])
    seen = [part[i] for part in (made.val_set, made.train_set) for i in range(len(part))]
    assert len({sample["id"] for sample in seen}) == 30
    for sample in seen:
        assert made.class_names[sample["label"]].replace(" ", "") == sample["id"].split("/")[0]
    source = made.open_parts().train
    assert source.read(0).image == (tmp_path / "eurosat" / "2750" / "AnnualCrop" / "AnnualCrop_1.jpg").read_bytes()
    assert made.val_set[0]["captions"][0] == f"a satellite photo of {made.class_names[made.val_set[0]['label']]}."


WORDNET = {"n01440764": "tench", "n02123045": "tabby cat", "n07753592": "banana"}


def write_imagenet(root):
    for place, number in enumerate(WORDNET):
        for picture_number in range(3):
            jpeg(root / "train" / number / f"{number}_{picture_number}.JPEG", place * 3 + picture_number)
        jpeg(root / "val" / number / f"ILSVRC2012_val_0000029{place}.JPEG", place)
    return root


def test_a_part_of_imagenet(tmp_path):
    parts = module("ImageNet", write_imagenet(tmp_path)).open_parts()
    assert parts.train.class_names == list(WORDNET.values())
    for split, source in (("train", parts.train), ("val", parts.val)):
        files = sorted((tmp_path / split).rglob("*.JPEG"))
        assert [source.key(i) for i in range(len(source))] == [f"{path.parent.name}/{path.name}" for path in files]
        for index, path in enumerate(files):
            raw = source.read(index)
            assert raw.image == path.read_bytes()
            assert source.class_names[raw.labels[0]] == WORDNET[path.parent.name]
    made = built("ImageNet", tmp_path)
    assert (len(made.train_set), len(made.val_set), made.test_set_names) == (9, 3, ["validation"])


def flat_validation(root):
    write_imagenet(root)
    for path in list((root / "val").rglob("*.JPEG")):
        path.rename(root / "val" / path.name)
    for number in WORDNET:
        (root / "val" / number).rmdir()


@pytest.mark.parametrize(
    ("name", "make", "inner", "message"),
    [
        ("CIFAR100", lambda root: None, "", r"cifar-100-python/train below it, .*or fetch it with .*download: true"),
        ("OxfordIIITPet", write_pets, "oxford-iiit-pet", r"within the set: give the one above, .*root: [^ ]*set`\."),
        (
            "FashionMNIST",
            lambda root: write_fashion(root / RAW, False),
            RAW,
            r"give the one above, .*root: [^ ]*set`\.",
        ),
        ("EuroSAT", lambda root: jpeg(root / "AnnualCrop" / "1.jpg", 1), "", "eurosat/2750/AnnualCrop below it"),
        ("ImageNet", lambda root: None, "", r"in [^ ]*set, with train/n01440764 .*ILSVRC2012_devkit_t12.tar.gz, and"),
        ("ImageNet", flat_validation, "", r"find any class folder in [^ ]*val\. .* unpack them once with"),
        ("ImageNet", lambda root: jpeg(root / "train" / "cat" / "1.jpg", 1), "", "WordNet numbers, .* got cat. Folder"),
    ],
)
def test_wrong_folders_are_refused(tmp_path, name, make, inner, message):
    make(tmp_path / "set")
    with pytest.raises(ValueError, match=message):
        module(name, tmp_path / "set" / inner).open_parts()


def test_wrong_arguments_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"name` must be one of CIFAR10, CIFAR100, .*, got 'cifar'"):
        module("cifar", tmp_path)
    with pytest.raises(ValueError, match=r"download` must be false for ImageNet, got true\. .*without an account"):
        module("ImageNet", tmp_path, download=True)


def test_files_are_fetched_when_asked_and_before_anyone_looks(tmp_path, monkeypatch):
    """An archive that has arrived already is unpacked: this is as far as a download goes without a network."""
    place = write_cifar(tmp_path / "written", "CIFAR10", monkeypatch) / "cifar-10-batches-py"
    (tmp_path / "data").mkdir()
    with tarfile.open(tmp_path / "data" / "cifar-10-python.tar.gz", "w:gz") as archive:
        archive.add(place, "cifar-10-batches-py")
    monkeypatch.setattr(datasets.CIFAR10, "tgz_md5", md5(tmp_path / "data" / "cifar-10-python.tar.gz"))
    for asked in (False, True):
        asker = module("CIFAR10", tmp_path / "data", download=asked)
        with pytest.raises(ValueError, match="Expected CIFAR10 in"):
            asker.open_parts()  # only `prepare_data` fetches, which Lightning calls on one process
        asker.prepare_data()
    assert len(asker.open_parts().train) == 50


def test_a_failed_download_says_what_to_put_where(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.CIFAR100, "url", (tmp_path / "gone.tar.gz").as_uri())
    with pytest.raises(ValueError, match=r"CIFAR100 cannot be fetched into .* by hand: cifar-100-python/train\."):
        module("CIFAR100", tmp_path, download=True).prepare_data()


@pytest.mark.parametrize("name", ["cifar10", "cifar100", "fashion_mnist", "oxford_pets", "eurosat", "imagenet"])
def test_configs_are_read(name, capsys):
    assert main(["fit", "--config", "quickstart", "--config", f"data/{name}", "--print_config"]) == 0
    assert "class_path: siglightning.data.TorchvisionDataModule" in capsys.readouterr().out
