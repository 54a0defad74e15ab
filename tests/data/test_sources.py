"""Class folders and tables against readers of a few lines: keys, pixels, captions and labels."""

import csv
import json
import os

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from siglightning.data import PicturesDataModule
from siglightning.data.images import BadSampleError, decode
from siglightning.data.pictograms import PictogramArchive
from siglightning.data.sources import Columns, FilesSource, FolderSource, TableSource

ROWS = range(0, 1200, 60)  # of the embedded pictures: twenty real ones


@pytest.fixture(scope="module")
def samples():
    """Twenty real pictures as PNG files would hold them: file name, pixels, caption, class."""
    archive = PictogramArchive.open()
    names = archive.concepts["name_en"].to_pylist()
    found = []
    for number, row in enumerate(ROWS):
        caption = names[archive.pictures["concept"][row].as_py()]
        pixels = archive.read_image(row).permute(1, 2, 0).numpy()
        found.append((f"{number:02d}.png", pixels, caption, ("animal", "food", "über_uns")[number % 3]))
    return found


@pytest.fixture
def folder(tmp_path, samples):
    for name, pixels, _, kind in samples:
        place = tmp_path / "data" / kind / ("deep" if name < "06" else "")
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place / name)
    (tmp_path / "data" / "animal" / "notes.txt").write_text("no picture")
    (tmp_path / "data" / "animal" / ".hidden.png").write_bytes(b"")
    return tmp_path / "data"


def test_class_folders(folder):
    expected = []
    for number, kind in enumerate(sorted(os.listdir(folder))):
        found = [os.path.join(at, name) for at, _, names in os.walk(folder / kind) for name in names]
        expected += [(path, number) for path in found if path.endswith(".png") and ".hidden" not in path]
    source = FolderSource(folder)
    assert source.class_names == ["animal", "food", "über_uns"]
    assert source.one_label
    got = {str(folder / source.key(i)): source.read(i) for i in range(len(source))}
    assert got.keys() == {path for path, _ in expected}
    for path, label in expected:
        assert got[path].labels == [label]
        np.testing.assert_array_equal(decode(got[path].image).permute(1, 2, 0), np.asarray(Image.open(path)))
    assert [source.key(i) for i in range(len(source))] == sorted(source.key(i) for i in range(len(source)))


def test_a_folders_fingerprint_is_that_of_its_names(folder, tmp_path):
    before = FolderSource(folder).fingerprint
    (tmp_path / "moved").symlink_to(folder)
    assert FolderSource(tmp_path / "moved").fingerprint == before
    (folder / "animal" / "new.png").write_bytes(b"x")
    assert FolderSource(folder).fingerprint != before


def test_files_with_labels_are_their_names_labels_and_classes(folder):
    names, labels = ["food/deep/01.png", "animal/06.png", "food/07.png"], np.array([[1, -1], [0, 2], [2, 1]])
    source = FilesSource(folder, names, labels, ["a", "b", "c"])
    assert [(source.key(i), source.read(i).labels) for i in range(3)] == [
        *((names[0], [1]), (names[1], [0, 2]), (names[2], [2, 1])),
    ]
    some = source.take(np.array([2, 0])).relabelled(np.array([9, 8, 7]), list("0123456789"))
    assert [(some.key(i), some.read(i).labels) for i in range(2)] == [(names[2], [7, 8]), (names[0], [8])]
    assert (some.class_names[7], source.class_names, len(source), source.one_label) == ("7", ["a", "b", "c"], 3, False)
    others = [
        FilesSource(folder, names[::-1], labels, ["a", "b", "c"]),
        FilesSource(folder, names, labels[::-1], ["a", "b", "c"]),
        FilesSource(folder, names, labels, ["a", "b", "d"]),
        source.take(np.array([0, 1])),
    ]
    assert len({source.fingerprint, *(other.fingerprint for other in others)}) == 5
    assert source.take(np.arange(3)).fingerprint == source.fingerprint


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda root: None, "does not exist"),
        (lambda root: root.mkdir(), "found none. Is it one level too deep?"),
        (lambda root: (root / "cat").mkdir(parents=True), "found none in cat. Remove empty folders."),
    ],
)
def test_wrong_folders_are_refused(tmp_path, make, message):
    make(tmp_path / "root")
    with pytest.raises(ValueError, match=message):
        FolderSource(tmp_path / "root")


@pytest.fixture
def pictures(tmp_path, samples):
    (tmp_path / "pictures").mkdir()
    for name, pixels, _, _ in samples:
        Image.fromarray(pixels).save(tmp_path / "pictures" / name)
    return tmp_path


def records(samples):
    return [{"image": f"pictures/{name}", "caption": caption, "kind": kind} for name, _, caption, kind in samples]


def write(kind, path, rows):
    if kind in ("csv", "tsv"):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0].keys(), delimiter="," if kind == "csv" else "\t")
            writer.writeheader()
            writer.writerows(rows)
    elif kind == "jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        table = pa.Table.from_pylist(rows)
        with pa.ipc.new_file(str(path), table.schema) as sink:
            sink.write_table(table)
    return path


@pytest.mark.parametrize("kind", ["csv", "tsv", "jsonl", "parquet", "arrow"])
def test_tables_of_every_kind(pictures, samples, kind):
    path = write(kind, pictures / f"table.{kind}", records(samples))
    source = TableSource(path, Columns(label="kind"))
    assert len(source) == len(samples)
    assert source.class_names == ["animal", "food", "über_uns"]
    for index, (name, pixels, caption, kind_of) in enumerate(samples):
        raw = source.read(index)
        assert source.key(index) == f"pictures/{name}"
        assert raw.captions == [caption]
        assert source.class_names[raw.labels[0]] == kind_of
        np.testing.assert_array_equal(decode(raw.image).permute(1, 2, 0), pixels)


def test_pictures_within_the_table(pictures, samples, monkeypatch):
    """Bytes, and the struct that Hugging Face writes."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(pictures / "cache"))
    contents = [(pictures / "pictures" / name).read_bytes() for name, *_ in samples]
    plain = write("parquet", pictures / "plain.parquet", [{"image": c, "caption": "x"} for c in contents])
    rows = [{"image": {"bytes": c, "path": f"{i}.png"}, "caption": "x"} for i, c in enumerate(contents)]
    structs = write("parquet", pictures / "structs.parquet", rows)
    for path, key in ((plain, "3"), (structs, "3.png")):
        source = TableSource(path)
        assert source.key(3) == key
        assert [source.read(i).image for i in range(len(source))] == contents


def test_several_captions_and_several_labels(pictures, samples):
    rows = [
        {"file": f"pictures/{name}", "short": caption, "long": [caption, f"a {caption}"], "tags": [kind, "all"]}
        for name, _, caption, kind in samples
    ]
    path = write("parquet", pictures / "many.parquet", rows)
    source = TableSource(path, Columns("file", ["short", "long"], "tags", key="short"))
    assert source.class_names == ["all", "animal", "food", "über_uns"]
    assert not source.one_label
    for index, (_, _, caption, kind) in enumerate(samples):
        raw = source.read(index)
        assert raw.captions == [caption, caption, f"a {caption}"]
        assert [source.class_names[label] for label in raw.labels] == [kind, "all"]
        assert source.key(index) == caption


def test_numbers_as_labels_take_the_names_given(pictures, samples):
    rows = [{"image": f"pictures/{name}", "y": i % 2} for i, (name, *_) in enumerate(samples)]
    for kind in ("csv", "parquet"):
        path = write(kind, pictures / f"numbers.{kind}", rows)
        columns = Columns(captions=[], label="y")
        named = TableSource(path, columns, class_names=["off", "on", "never"])
        assert [named.read(i).labels for i in range(4)] == [[0], [1], [0], [1]]
        assert TableSource(path, columns).class_names == ["0", "1"]
        with pytest.raises(ValueError, match=r"among the 1 class_names, got \[1\]"):
            TableSource(path, columns, class_names=["off"])


def test_text_that_cannot_be_used_is_a_bad_sample(pictures):
    path = pictures / "bad.csv"
    path.write_bytes(
        b'image,caption\npictures/00.png,fine\npictures/01.png,caf\xe9\npictures/02.png,"  "\ngone.png,x\n,y\n'
    )
    source = TableSource(path)
    assert source.read(0).captions == ["fine"]
    for index, reason in ((1, "not UTF-8"), (2, "empty caption"), (3, "unreadable"), (4, "no picture")):
        with pytest.raises(BadSampleError) as caught:
            source.read(index)
        assert caught.value.reason == reason


def test_scripts_of_the_world_arrive_as_they_are(pictures):
    captions = ["قطة صغيرة", "犬の顔", "кошка", "naïve café", "שלום"]
    rows = [{"image": "pictures/00.png", "caption": caption} for caption in captions]
    for kind in ("csv", "jsonl", "parquet"):
        source = TableSource(write(kind, pictures / f"world.{kind}", rows))
        assert [source.read(i).captions[0] for i in range(5)] == captions


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.csv", None, "does not exist"),
        ("table.xls", "x", "Expected a table that ends with .csv, .tsv"),
        ("empty.csv", "image,caption\n", "at least one row"),
        ("other.csv", "path,text\na,b\n", "Expected the columns image, caption in .* which has path, text"),
        ("broken.parquet", "no parquet", "cannot be read as parquet"),
    ],
)
def test_wrong_tables_are_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        TableSource(tmp_path / name)


def test_a_tables_fingerprint_is_that_of_how_its_words_are_used(pictures, samples):
    rows = [row | {"kind": kind} for row, (_, _, _, kind) in zip(records(samples), samples, strict=True)]
    path, kinds = write("parquet", pictures / "a.parquet", rows), ["animal", "food", "über_uns"]
    columns = [Columns(label="kind"), Columns(label="kind", weights={"caption": 0.5})]
    found = {
        TableSource(path, column, class_names=names).fingerprint for column in columns for names in (kinds, kinds[::-1])
    }
    assert len(found) == 4


def test_a_tables_fingerprint_is_that_of_its_words(pictures, samples):
    rows = records(samples)
    first = TableSource(write("parquet", pictures / "a.parquet", rows)).fingerprint
    assert TableSource(write("parquet", pictures / "b.parquet", rows)).fingerprint == first
    rows[7]["caption"] = "another"
    assert TableSource(write("parquet", pictures / "c.parquet", rows)).fingerprint != first


def test_a_picture_by_itself_is_a_set_of_one(folder):
    one = folder / "animal" / "deep" / "00.png"
    source = PicturesDataModule(str(one)).open_parts().tests["pictures"]
    assert (len(source), source.key(0), source.read(0).image) == (1, "00.png", one.read_bytes())
    for wrong, told in (("animal/notes.txt", "found none"), ("nowhere.png", "nowhere.png does not exist")):
        with pytest.raises(ValueError, match=told):
            PicturesDataModule(str(folder / wrong)).open_parts()
