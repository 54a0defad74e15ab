"""Labels that cannot be learnt as they are: each is told in a line, or handled as it should be."""

import csv
import io

import numpy as np
import pytest
import torch
from PIL import Image

from siglightning.batch import InputSpec
from siglightning.data import Columns, FolderDataModule, PictogramArchive, TableDataModule
from siglightning.data.sources import FilesSource

ARCHIVE = PictogramArchive.open()


def drawing(number):
    return Image.fromarray(ARCHIVE.read_image(number * 30).permute(1, 2, 0).numpy())


def encoded(picture, kind, **options):
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


def write_table(root, labels, name="table.csv"):
    with (root / name).open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["image", "y"])
        for number, label in enumerate(labels):
            drawing(number).save(root / f"{number}.png")
            rows.writerow([f"{number}.png", label])
    return str(root / name)


def table(path, **options):
    options = {"columns": Columns(captions=[], label="y"), "global_batch_size": 4, **options}
    return TableDataModule(path, **options)


def built(module):
    module.input_spec = InputSpec(32, None)
    module.setup()
    return module


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 2, 3], r"column 'y' of .*table\.csv to be among the 3 class_names, got \[3\]\. Name every class in its "
         r"place: the number 0 is the first of them, 2 the last\."),
        ([1, 2, 3, 1], r"among the 3 class_names, got \[3\]\."),  # counted from 1
        (["a", "b", "x", "c"], r"among the 3 class_names, got \['x'\]\."),
    ],
)  # fmt: skip
def test_a_label_without_a_name_is_refused(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message) as caught:
        built(table(write_table(tmp_path, labels), class_names=["a", "b", "c"]))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (["a", "", "b", "  "] * 3, r"in every row of .*table\.csv, got 6 of 12 without in column 'y'.* row 2\. Fill"),
        ([0, 1, -1, 1], r"got 1 of 4 without in column 'y', the first of them row 3\."),
    ],
)
def test_rows_without_a_label_are_refused(tmp_path, labels, message):
    with pytest.raises(ValueError, match=message):
        built(table(write_table(tmp_path, labels)))


def test_numbers_from_one_are_classes_of_their_own_names(tmp_path):
    module = built(table(write_table(tmp_path, [1, 2, 3] * 8)))
    assert module.class_names == ["1", "2", "3"]
    assert {sample["label"] for sample in module.train_set.__getitems__(list(range(len(module.train_set))))} == {
        0,
        1,
        2,
    }


def test_files_labels_are_checked():
    files = ["a.png", "b.png", "c.png"]
    with pytest.raises(ValueError, match=r"labels below 2, the number of classes, in .*, got 2\. Count labels from 0"):
        FilesSource(".", files, np.array([0, 1, 2]), ["a", "b"])
    with pytest.raises(ValueError, match=r"labels from 0 on in .*, got -1\. Leave out what has none"):
        FilesSource(".", files, np.array([0, 1, -1]), ["a", "b"])
    with pytest.raises(ValueError, match=r"labels from 0 on in .*, got -2\."):
        FilesSource(".", files, np.array([[0, 1], [1, -1], [-2, 0]]), ["a", "b"])
    assert FilesSource(".", files, np.array([[0, 1], [1, -1], [-1, -1]]), ["a", "b"]).labels[2].tolist() == [-1, -1]


def test_a_class_that_never_occurs_keeps_its_place_and_is_told(tmp_path, capsys):
    names = ["a", "never", "c", "neither"]
    module = built(table(write_table(tmp_path, ["a", "c"] * 10), class_names=names))
    assert module.class_names == names
    labels = {sample["label"] for sample in module.train_set.__getitems__(list(range(len(module.train_set))))}
    assert labels == {0, 2}
    said = capsys.readouterr().out
    assert said == "Classes without a training picture (2 of 4): never, neither.\n"


def test_a_class_that_only_validation_has_is_told(tmp_path, capsys):
    """With the names of all classes it is no mistake: prompts may be asked for what training never saw."""
    train = write_table(tmp_path, ["a", "b"] * 6)
    val = write_table(tmp_path, ["a", "b", "new", "new"], "val.csv")
    built(table(train, val=val, class_names=["a", "b", "new", "other"]))
    told = capsys.readouterr().out.splitlines()
    assert told == [
        "Classes without a training picture (2 of 4): new, other.",
        "Classes that validation shows and training never saw (1 of 4): new.",
    ]
    with pytest.raises(ValueError, match=r"of .*val\.csv to be among the 2 class_names, got \['new'\]"):
        built(table(train, val=val))


def test_a_class_that_the_share_for_validation_took_whole_is_told(tmp_path, capsys):
    """A class of one picture: some seed puts it on the side of validation."""
    path = write_table(tmp_path, [*["a", "b"] * 9, "rare"])
    told = {}
    for seed in range(40):
        module = built(table(path, split_seed=seed))
        in_val = any(sample["label"] == 2 for sample in module.val_set.__getitems__(list(range(len(module.val_set)))))
        told.setdefault(in_val, set()).add(capsys.readouterr().out)
    assert told[False] == {""}
    (said,) = told[True]
    assert "Classes without a training picture (1 of 3): rare." in said
    assert "Classes that validation shows and training never saw (1 of 3): rare." in said


@pytest.mark.parametrize("labels", [["a"] * 6, [0] * 6])
def test_one_class_is_refused(tmp_path, labels):
    with pytest.raises(ValueError, match=r"at least two classes, found only '[a0]': nothing is to be told apart\. Add"):
        built(table(write_table(tmp_path, labels)))


def test_counts_of_classes_are_those_of_the_samples(tmp_path):
    """Also where rows have lists of labels, some of them empty."""
    lists = [["b", "a"], [], ["c"], ["a", "c"], None, ["a"]] * 3
    lines = [
        f'{{"image": "x.png", "y": {str(each).replace(chr(39), chr(34)).replace("None", "null")}}}' for each in lists
    ]
    (tmp_path / "table.jsonl").write_text("\n".join(lines))
    several = table(str(tmp_path / "table.jsonl")).open_parts().train
    single = table(write_table(tmp_path, ["c", "a", "d", "a"]), class_names=["a", "b", "c", "d"]).open_parts().train
    files = FilesSource(".", list("wxyz"), np.array([[0, 2], [2, -1], [-1, -1], [1, 0]]), ["a", "b", "c"])
    for source in (several, single, files):
        for rows in (np.arange(len(source)), np.array([3, 0]), np.array([], dtype=np.int64)):
            counts = np.zeros(len(source.class_names), dtype=int)
            for row in rows.tolist():
                labels = source.labels[row] if source is files else []
                if source is not files:
                    (tmp_path / "x.png").write_bytes(b"any")
                    labels = source.read(row).labels
                for label in labels:
                    counts[label] += label >= 0
            assert source.class_counts(rows).tolist() == counts.tolist()


def test_pictures_of_every_mode_have_their_classes(tmp_path):
    """Gray, transparent, CMYK, palette and 16 bits, as files in class folders: three colours and the right label."""
    cat, dog = drawing(30), drawing(50)
    transparent = Image.new("RGBA", (64, 64), (0, 0, 0, 0))
    transparent.paste(dog.crop((0, 0, 32, 64)).convert("RGBA"), (0, 0))
    contents = {
        "cat/gray.jpg": (encoded(cat.convert("L"), "JPEG", quality=95), np.asarray(cat.convert("L"))[..., None]),
        "cat/cmyk.jpg": (encoded(cat.convert("CMYK"), "JPEG", quality=95), np.asarray(cat)),
        "cat/deep.png": (
            encoded(Image.fromarray(np.asarray(cat.convert("L")).astype(np.uint16) * 257), "PNG"),
            np.asarray(cat.convert("L"))[..., None],
        ),
        "dog/rgba.png": (
            encoded(transparent, "PNG"),
            np.concatenate([np.asarray(dog)[:, :32], np.full((64, 32, 3), 255, np.uint8)], axis=1),
        ),
        "dog/palette.png": (encoded(dog.quantize(256), "PNG"), np.asarray(dog)),
        "dog/gray_alpha.png": (encoded(dog.convert("LA"), "PNG"), np.asarray(dog.convert("L"))[..., None]),
    }
    for part in ("train", "val"):
        for name, (content, _) in contents.items():
            path = tmp_path / part / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    module = FolderDataModule(str(tmp_path), global_batch_size=2)
    module.input_spec = InputSpec(64, None)
    module.setup()
    (batch,) = module.val_dataloader()
    assert (batch["image"].dtype, batch["image"].shape) == (torch.uint8, (6, 3, 64, 64))
    for key, label, image in zip(batch["id"], batch["label"].tolist(), batch["image"], strict=True):
        assert module.class_names[label] == key.partition("/")[0]
        wanted = np.broadcast_to(contents[key][1], (64, 64, 3)).astype(int)
        difference = np.abs(image.permute(1, 2, 0).numpy().astype(int) - wanted)
        assert difference.mean() < 3, key  # JPEG at quality 95, and 256 colours of the palette
