"""Samples of a user's files: what is drawn, what replaces a bad one, and a fit on a folder that holds every kind."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from test_images import encoded, png_bomb

from siglightning.batch import InputSpec
from siglightning.cli import main
from siglightning.data import Augmentation, Columns, FolderDataModule, MapStyleDataModule, TableDataModule
from siglightning.data.bad_samples import BadSampleLog
from siglightning.data.images import BadSampleError, decode
from siglightning.data.map_style import MapDataset, Preparation
from siglightning.data.map_style_module import Parts
from siglightning.data.pictograms import PictogramArchive
from siglightning.data.sampler import SampleKey
from siglightning.data.sources import FolderSource
from siglightning.data.sources.torchvision_sets import ArraySource
from siglightning.data.transforms import resize

PLAIN = Augmentation(0, 0, 0, 0, 0, 0, 0, 0)
CLASSES = ("cats", "big_dogs")


def pixels(row):
    return PictogramArchive.open().read_image(row).permute(1, 2, 0).numpy()


@pytest.fixture
def root(tmp_path):
    """Two classes of twenty pictures."""
    for kind in CLASSES:
        (tmp_path / "pictures" / kind).mkdir(parents=True)
    for number in range(40):
        Image.fromarray(pixels(number * 30)).save(tmp_path / "pictures" / CLASSES[number % 2] / f"{number:02d}.png")
    return tmp_path / "pictures"


def dataset(root, log=None, **options):
    source = FolderSource(root)
    return MapDataset(source, np.arange(len(source)), Preparation(32, **options), log)


def test_labels_are_said_in_a_template(root):
    evaluated = dataset(root, templates=["a photo of {}.", "{}!"])[0]
    assert evaluated["captions"] == ["a photo of big dogs."]
    training = dataset(root, templates=["a photo of {}.", "{}!"], augmentation=PLAIN)
    said = {training[SampleKey(0, epoch)]["captions"][0] for epoch in range(20)}
    assert said == {"a photo of big dogs.", "big dogs!"}
    first, second = training.__getitems__([SampleKey(0, 0), SampleKey(1, 0)])
    assert first["match_id"] == second["match_id"]  # one class, whatever the template
    assert first["match_id"] != training[SampleKey(30, 0)]["match_id"]
    assert (first["label"], first["id"]) == (0, "big_dogs/01.png")


def test_only_training_pictures_are_augmented(root):
    """Validation pictures are the files, resized and nothing else, in every epoch."""
    module = FolderDataModule(str(root), global_batch_size=4, val_fraction=0.25)
    module.input_spec = InputSpec(32, None)
    module.setup()
    for part, is_plain in ((module.val_set, True), (module.train_set, False)):
        for key in (SampleKey(number, epoch) for number in range(len(part)) for epoch in (0, 3)):
            sample = part[key]
            (plain,) = resize([decode((root / sample["id"]).read_bytes())], 32)
            assert torch.equal(sample["image"], plain) == is_plain
            assert ("colour" not in sample) == is_plain


def test_a_sample_is_a_function_of_seed_epoch_and_number(root):
    one, other = (dataset(root, augmentation=Augmentation(), seed=seed) for seed in (1, 2))
    keys = [SampleKey(n, 3) for n in (5, 17, 30)]
    together, alone = one.__getitems__(keys), [one[key] for key in keys]
    for a, b in zip(together, alone, strict=True):
        assert torch.equal(a["image"], b["image"])
        assert a["captions"] == b["captions"]
    assert not torch.equal(together[0]["image"], other[keys[0]]["image"])
    assert not torch.equal(together[0]["image"], one[SampleKey(5, 4)]["image"])


def bad_contents():
    jpeg = encoded(np.kron(pixels(0), np.ones((8, 8, 1), np.uint8)), "JPEG")
    return {
        "empty.png": (b"", "empty"),
        "page.jpg": (b"<html>404</html>", "no picture"),
        "cut.jpg": (jpeg[:900], "damaged"),
        "bomb.png": (png_bomb(24500), "too large"),
        "spacer.gif": (encoded(pixels(0)[:1, :1], "GIF"), "too small"),
    }


@pytest.fixture
def root_with_bad(root):
    for name, (content, _) in bad_contents().items():
        (root / "cats" / f"00_{name}").write_bytes(content)
    return root


def test_the_next_good_sample_takes_the_place_of_a_bad_one(root_with_bad, tmp_path):
    log = BadSampleLog(tmp_path / "log.jsonl", 1.0)
    samples = dataset(root_with_bad, log).__getitems__(list(range(45)))
    names = [sample["id"] for sample in samples]
    assert len(names) == 45
    good = [name for name in names if "_" not in name.rpartition("/")[2]]
    assert good == names
    assert names[20:27] == ["cats/00.png", *["cats/02.png"] * 6]  # the picture itself, and five times in their place
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in lines} == {
        f"cats/00_{name}": reason for name, (_, reason) in bad_contents().items()
    }
    assert len(lines) == 5  # each once, however often it was met


def test_too_many_bad_samples_end_training_with_their_names():
    log = BadSampleLog(None, 0.01)
    for number in range(1000):
        log.good()
        if number % 200 == 0:
            log.bad(f"file-{number}", BadSampleError("damaged"))
    for number in range(5):
        log.bad(f"late-{number}", BadSampleError("empty"))
    with pytest.raises(ValueError, match=r"at most 1.0% bad samples, got 11 of 1011 \(6 empty, 5 damaged\), .* file-0"):
        log.bad("last", BadSampleError("empty"))


def test_nothing_but_bad_samples_is_said(tmp_path):
    (tmp_path / "cats").mkdir()
    for number in range(3):
        (tmp_path / "cats" / f"{number}.png").write_bytes(b"")
    with pytest.raises(ValueError, match=r"None of the .* can be used: {'empty': 3}"):
        dataset(tmp_path, BadSampleLog(None, 1.0))[0]


def all_of(dataset):
    return dataset.__getitems__(list(range(len(dataset))))


def test_validation_is_a_share_or_a_folder_of_its_own(root, tmp_path):
    def built(path):
        module = FolderDataModule(str(path), global_batch_size=4)
        module.input_spec = InputSpec(32, lambda captions: torch.zeros(len(captions), 2, dtype=torch.int64))
        module.setup()
        return module

    module = built(root)
    assert (len(module.train_set), len(module.val_set), module.test_set_names) == (36, 4, ["validation"])
    ids = [
        {sample["id"] for sample in part.__getitems__(range(len(part)))} for part in (module.train_set, module.val_set)
    ]
    assert not ids[0] & ids[1]
    for part in ("train", "val", "test"):
        (tmp_path / "split" / part).mkdir(parents=True)
        for kind in CLASSES:
            (tmp_path / "split" / part / kind).symlink_to(root / kind)
    module = built(tmp_path / "split")
    assert (len(module.train_set), len(module.val_set), module.test_set_names) == (40, 40, ["test"])
    assert module.class_names == ["big dogs", "cats"]
    (tmp_path / "split" / "val" / "big_dogs").unlink()
    assert {sample["label"] for sample in all_of(built(tmp_path / "split").val_set)} == {1}  # still that of the cats


SMALL = """
model:
  class_path: siglightning.tasks.ContrastiveTask
  init_args:
    network:
      class_path: siglightning.models.TwoTower
      init_args:
        image_tower: {name: "local:conv", kwargs: {width: 8, depths: [1, 1]}}
        text_tower: {name: "local:text_transformer", kwargs: {width: 16, depth: 1, heads: 2}}
        embed_dim: 16
        image_size: 32
trainer: {max_steps: 6, accelerator: cpu, enable_progress_bar: false, log_every_n_steps: 1, num_sanity_val_steps: 0}
"""


def odd_contents():
    """Pictures that are unusual and good: they must arrive, each as it is meant."""
    picture = Image.fromarray(pixels(30))
    turned = Image.Exif()
    turned[0x0112] = 6
    gray = np.asarray(picture.convert("L")).astype(np.uint16) * 257
    frames = {"save_all": True, "append_images": [picture.rotate(90)]}
    return {
        "cmyk.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "palette.png": encoded(picture.quantize(16), "PNG"),
        "sixteen_bits.png": encoded(gray, "PNG"),
        "animated.gif": encoded(picture, "GIF", **frames),
        "scan.tiff": encoded(picture, "TIFF"),
        "turned.jpg": encoded(picture, "JPEG", exif=turned),
        "transparent.webp": encoded(picture.convert("RGBA"), "WEBP"),
    }


def test_a_fit_takes_odd_pictures_and_replaces_bad_ones(root_with_bad, tmp_path, monkeypatch, capsys):
    for name, content in odd_contents().items():
        (root_with_bad / "big_dogs" / name).write_bytes(content)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    data = ["--data=FolderDataModule", f"--data.root={root_with_bad}", "--data.global_batch_size=16"]
    bad = ["--data.max_bad_fraction=0.5", "--data.num_workers=2"]
    code = main(["fit", "--config", "small.yaml", *data, *bad, "--run_dir", "run"])
    assert code == 0, "".join(capsys.readouterr())
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
    assert {line["key"] for line in lines} == {f"cats/00_{name}" for name in bad_contents()}
    table = FolderSource(root_with_bad)
    assert {f"big_dogs/{name}" for name in odd_contents()} <= {table.key(number) for number in range(len(table))}


def test_a_fit_replaces_bad_captions_and_cuts_long_ones(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    paths = sorted(f"pictures/{path.parent.name}/{path.name}" for path in root.rglob("*.png"))
    captions = [f"drawing {number}".encode() for number in range(40)]
    captions[7:10] = [b"", b"caf\xe9 au lait", b"very " * 20_000 + b"long"]
    lines = [path.encode() + b"," + caption for path, caption in zip(paths, captions, strict=True)]
    (tmp_path / "pairs.csv").write_bytes(b"image,caption\n" + b"\n".join(lines) + b"\n")
    data = ["--data=TableDataModule", "--data.train=pairs.csv", "--data.global_batch_size=12"]
    code = main(["fit", "--config", "small.yaml", *data, "--data.max_bad_fraction=0.5", "--run_dir", "run"])
    said = "".join(capsys.readouterr())
    assert code == 0, said
    log = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
    assert {line["key"]: line["reason"] for line in log} == {paths[7]: "empty caption", paths[8]: "not UTF-8"}
    assert "captions were longer than the model's context and lost their end" in said


def test_a_fit_on_a_folder_with_bad_pictures_is_evaluated(root_with_bad, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    data = ["--data=FolderDataModule", f"--data.root={root_with_bad}", "--data.global_batch_size=16"]
    code = main(["fit", "--config", "small.yaml", *data, "--data.max_bad_fraction=0.5", "--run_dir", "run"])
    assert code == 0, "".join(capsys.readouterr())
    assert {json.loads(line)["reason"] for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()}
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert {"zeroshot_acc", "t2i_recall@1"} <= summary["validation"].keys()


def test_a_fit_on_a_table_of_captions(root, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    lines = [f"pictures/{path.parent.name}/{path.name},drawing {path.stem}" for path in sorted(root.rglob("*.png"))]
    (tmp_path / "pairs.csv").write_text("file,text\n" + "\n".join(lines) + "\n")
    columns = "--data.columns={image: file, captions: [text]}"
    data = ["--data=TableDataModule", "--data.train=pairs.csv", columns, "--data.global_batch_size=8"]
    code = main(["fit", "--config", "small.yaml", *data, "--run_dir", "run"])
    assert code == 0, "".join(capsys.readouterr())
    assert "t2i_recall@1" in json.loads((tmp_path / "run" / "summary.json").read_text())["validation"]


@pytest.mark.parametrize(
    ("module", "options", "message"),
    [
        (FolderDataModule, {"val_fraction": 0.0}, "val_fraction` must lie between 0 and 1, got 0.0"),
        (FolderDataModule, {"templates": ["a photo"]}, "templates` cannot be used: A prompt template holds {} once"),
        (TableDataModule, {"templates": []}, "templates` cannot be used: .* at least one prompt template, got none"),
    ],
)
def test_wrong_arguments_are_refused(module, options, message):
    with pytest.raises(ValueError, match=message):
        module("somewhere", **options)


@pytest.mark.parametrize("kind", ["folder", "table", "array"])
def test_shots_are_so_many_of_each_class_and_none_that_validates(tmp_path, kind):
    module = _labelled(tmp_path, kind, shots=3, val_fraction=0.25)
    module.input_spec = InputSpec(16, None)
    module.setup()
    keys = [module.train_set[number]["id"] for number in range(len(module.train_set))]
    labels = [module.train_set[number]["label"] for number in range(len(module.train_set))]
    assert sorted(labels) == [number for number in range(4) for _ in range(3)]
    validating = {module.val_set[number]["id"] for number in range(len(module.val_set))}
    assert len(set(keys)) == 12
    assert not validating & set(keys)

    def drawn(**others):
        other = _labelled(tmp_path, kind, **{"shots": 3, "val_fraction": 0.25, **others})
        other.input_spec = InputSpec(16, None)
        other.setup()
        return [other.train_set[number]["id"] for number in range(len(other.train_set))], other.fingerprint

    assert drawn() == (keys, module.fingerprint)
    assert drawn(seed=5)[0] == keys  # the run's own seed draws no other samples
    assert drawn(split_seed=1)[0] != keys
    assert drawn(shots=4)[1] != module.fingerprint


def test_more_shots_than_there_are_pictures_are_refused(tmp_path):
    module = _labelled(tmp_path, "folder", shots=11)
    module.input_spec = InputSpec(16, None)
    with pytest.raises(ValueError, match=r"at least 11 pictures of every class .* got fewer of kind_0 \(\d+\)"):
        module.setup()
    with pytest.raises(ValueError, match=r"`data\.init_args\.shots` must be at least 1"):
        _labelled(tmp_path, "folder", shots=0)


class Given(MapStyleDataModule):
    """Samples of a source."""

    def __init__(self, source, **others):
        super().__init__(**others)
        self.source = source

    def open_parts(self):
        return Parts(self.source)


def _labelled(root, kind, **options):
    """40 pictures of 4 classes."""
    sizes = {"global_batch_size": 4, "augmentation": PLAIN, **options}
    if kind == "array":
        pixels = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 3, 16, 16), np.uint8)
        source = ArraySource(pixels, np.arange(40) % 4, list("abcd"), "x/")
        return Given(source, **sizes)
    for number in range(40):
        path = root / f"kind_{number % 4}" / f"{number}.png"
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(path)
    if kind == "folder":
        return FolderDataModule(str(root), **sizes)
    lines = [f"kind_{number % 4}/{number}.png,{number % 4}" for number in range(40)]
    (root / "table.csv").write_text("\n".join(["image,label", *lines]))
    return TableDataModule(str(root / "table.csv"), columns=Columns("image", (), "label"), **sizes)
