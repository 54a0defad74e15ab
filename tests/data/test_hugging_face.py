"""Data sets of Hugging Face, saved and as Parquet, against readers of a few lines; nothing is asked of the network."""

import io
import json
import os
import pickle
import sys

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PillowImage
from test_images import encoded

from siglightning.batch import InputSpec
from siglightning.data import BadSampleError, Columns, HuggingFaceDataModule, HuggingFaceSource
from siglightning.data.images import decode
from siglightning.data.pictograms import PictogramArchive

KINDS, TAGS = ["dry_field", "lake", "airport"], ["water", "green", "grey", "city"]
FEATURES = Features(
    {
        "image": Image(),
        "kind": ClassLabel(names=KINDS),
        "tags": List(ClassLabel(names=TAGS)),
        "caption": Value("string"),
        "others": List(Value("string")),
    }
)


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))


def make_rows():
    """Twelve real pictures, as files."""
    pixels = [PictogramArchive.open().read_image(row).permute(1, 2, 0).numpy() for row in range(0, 1200, 100)]
    return [
        {
            "image": {"bytes": encoded(array, "PNG"), "path": f"{number:02d}.png"},
            "kind": number % 3,
            "tags": sorted({number % 4, (number // 2) % 4}),
            "caption": f"drawing {number}",
            "others": [f"picture {number}", f"dessin {number}"],
        }
        for number, array in enumerate(pixels)
    ]


@pytest.fixture(scope="module")
def rows():
    return make_rows()


def of(rows):
    return Dataset.from_list(rows, features=FEATURES)


def write_saved(folder, rows):
    DatasetDict(train=of(rows[:8]), validation=of(rows[8:10]), test=of(rows[10:])).save_to_disk(folder)
    return folder


@pytest.fixture
def saved(tmp_path, rows):
    return write_saved(tmp_path / "saved", rows)


@pytest.fixture
def parquet(tmp_path, rows):
    """As the hub keeps data sets: a folder `data`, the split and the shard in the names of files."""
    (tmp_path / "parquet" / "data").mkdir(parents=True)
    for name, part in (
        ("train-00000-of-00002", rows[:5]),
        ("train-00001-of-00002", rows[5:8]),
        ("validation-00000-of-00001", rows[8:10]),
        ("test-00000-of-00001", rows[10:]),
    ):
        of(part).to_parquet(tmp_path / "parquet" / "data" / f"{name}.parquet")
    return tmp_path / "parquet"


def arrow_by_hand(folder):
    """What lies in the folder of one saved split: streams of Arrow, and the names of classes in a JSON file."""
    found = [
        row for file in sorted(folder.glob("data-*.arrow")) for row in pa.ipc.open_stream(file).read_all().to_pylist()
    ]
    names = json.loads((folder / "dataset_info.json").read_text())["features"]["kind"]["names"]
    return found, names


def parquet_by_hand(folder, split):
    files = sorted((folder / "data").glob(f"{split}-*.parquet"))
    features = json.loads(pq.read_schema(files[0]).metadata[b"huggingface"])["info"]["features"]
    return [row for file in files for row in pq.read_table(file).to_pylist()], features["kind"]["names"]


COLUMNS = Columns("image", ["caption", "others"], "kind")


def assert_same(source, by_hand):
    found, names = by_hand
    assert source.class_names == names == KINDS
    assert source.one_label
    assert [source.key(row) for row in range(len(source))] == [row["image"]["path"] for row in found]
    for number, row in enumerate(found):
        raw = source.read(number)
        assert raw.image == row["image"]["bytes"]  # as it was stored: decoding is ours
        assert raw.captions == [row["caption"], *row["others"]]
        assert raw.labels == [row["kind"]]
        pixels = np.asarray(PillowImage.open(io.BytesIO(row["image"]["bytes"])))
        np.testing.assert_array_equal(decode(raw.image).permute(1, 2, 0), pixels)


def parts_of(path, **options):
    return HuggingFaceDataModule(
        str(path), COLUMNS, val_split="validation", test_splits=["test"], **options
    ).open_parts()


def test_splits_saved_to_disk(saved):
    parts = parts_of(saved)
    for split, source in (("train", parts.train), ("validation", parts.val), ("test", parts.tests["test"])):
        assert_same(source, arrow_by_hand(saved / split))
    assert [len(part) for part in (parts.train, parts.val, parts.tests["test"])] == [8, 2, 2]


def test_a_folder_of_parquet_files(parquet):
    parts = parts_of(parquet)
    for split, source in (("train", parts.train), ("validation", parts.val), ("test", parts.tests["test"])):
        assert_same(source, parquet_by_hand(parquet, split))
    assert [len(part) for part in (parts.train, parts.val, parts.tests["test"])] == [8, 2, 2]


@pytest.mark.parametrize(("pattern", "count"), [("train-*.parquet", 8), ("train-00000-of-00002.parquet", 5)])
def test_parquet_files_are_the_training_split(parquet, pattern, count):
    source = HuggingFaceDataModule(f"{parquet}/data/{pattern}", COLUMNS).open_parts().train
    found, names = parquet_by_hand(parquet, "train")
    assert_same(source, (found[:count], names))


def test_a_data_set_saved_by_itself_is_the_training_split(tmp_path, rows):
    of(rows).save_to_disk(tmp_path / "one", num_shards=3)
    assert_same(
        HuggingFaceDataModule(str(tmp_path / "one"), COLUMNS).open_parts().train, arrow_by_hand(tmp_path / "one")
    )


def test_slices_of_a_split_are_other_data(parquet):
    options = {"train_split": "train[:75%]", "val_split": "train[75%:]"}
    parts = HuggingFaceDataModule(str(parquet), COLUMNS, **options).open_parts()
    found, names = parquet_by_hand(parquet, "train")
    assert_same(parts.train, (found[:6], names))
    assert_same(parts.val, (found[6:], names))
    halves = [
        HuggingFaceDataModule(str(parquet), COLUMNS, train_split=split).open_parts().train.fingerprint
        for split in ("train[:4]", "train[4:]", "train[:4]")
    ]
    assert halves[0] == halves[2] != halves[1]


def test_lists_of_class_labels_are_several_labels(saved, rows):
    module = HuggingFaceDataModule(
        str(saved), Columns(captions=[], label="tags"), val_split="validation", global_batch_size=8, templates=["{}!"]
    )
    module.input_spec = InputSpec(32, None)
    module.setup()
    assert module.class_names == TAGS
    (batch,) = module.val_dataloader()
    expected = [[float(tag in row["tags"]) for tag in range(4)] for row in rows[8:10]]
    assert batch["label"].tolist() == expected
    assert module.val_set[0]["captions"] == [f"{TAGS[tag]}!" for tag in rows[8]["tags"]]


def test_words_and_given_names_are_classes_where_the_data_know_none(tmp_path, rows):
    plain = [{"image": row["image"]["bytes"], "word": KINDS[row["kind"]], "number": row["kind"]} for row in rows]
    Dataset.from_list(plain).save_to_disk(tmp_path / "plain")
    words = HuggingFaceDataModule(str(tmp_path / "plain"), Columns(captions=[], label="word")).open_parts().train
    assert words.class_names == sorted(KINDS)
    assert [words.class_names[words.read(n).labels[0]] for n in range(12)] == [row["word"] for row in plain]
    assert (words.key(7), words.read(7).image) == ("7", plain[7]["image"])
    columns = Columns(captions=[], label="number")
    named = HuggingFaceDataModule(str(tmp_path / "plain"), columns, class_names=KINDS).open_parts().train
    assert (named.class_names, named.read(5).labels) == (KINDS, [2])


def test_pictures_that_are_only_named_are_read_from_their_files(tmp_path, rows):
    (tmp_path / "a.png").write_bytes(rows[0]["image"]["bytes"])
    paths = [str(tmp_path / "a.png"), str(tmp_path / "b.png")]
    source = HuggingFaceSource(Dataset.from_dict({"image": paths, "caption": ["x", "y"]}).cast_column("image", Image()))
    assert source.read(0).image == rows[0]["image"]["bytes"]
    assert source.key(0) == "0"  # a path of this machine would not be the same elsewhere
    with pytest.raises(BadSampleError, match="unreadable: No such file"):
        source.read(1)


def test_pictures_stay_in_the_file(tmp_path):
    """Opened, pickled and read, the data take no memory of Arrow's; the pickle does not hold them."""
    contents = [{"image": np.random.default_rng(n).bytes(100_000), "caption": "x"} for n in range(200)]
    Dataset.from_list(contents).save_to_disk(tmp_path / "large")
    before = pa.total_allocated_bytes()
    source = HuggingFaceDataModule(str(tmp_path / "large")).open_parts().train
    pickled = pickle.dumps(source)
    again = pickle.loads(pickled)
    assert [again.read(n).image for n in (0, 77, 199)] == [contents[n]["image"] for n in (0, 77, 199)]
    assert pa.total_allocated_bytes() - before < 2**20  # of 20 MB
    assert len(pickled) < 20_000
    assert again.fingerprint == source.fingerprint


def test_without_network_the_message_says_what_to_do(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    module = HuggingFaceDataModule("jonathan-roberts1/Million-AID", Columns(captions=[], label="label_3"))
    with pytest.raises(ValueError) as caught:
        module.open_parts()
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith("jonathan-roberts1/Million-AID is not here, and the hub does not give it: ")
    assert "`datasets.load_dataset('jonathan-roberts1/Million-AID').save_to_disk(FOLDER)`, and give FOLDER." in message


def test_without_the_library_the_message_says_what_to_install(monkeypatch, saved):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ValueError, match=r'need the library `datasets`: pip install "siglightning\[datasets\]"\.'):
        HuggingFaceDataModule(str(saved)).open_parts()


@pytest.mark.parametrize(
    ("path", "options", "message"),
    [
        ("gone/data.parquet", {}, "a Parquet file or a name on the hub, but gone/data.parquet does not exist"),
        ("./gone", {}, "but ./gone does not exist"),
        (
            "saved",
            {"val_split": "val"},
            "Expected splits among train, validation, test, got val.* `path`, `name` and the",
        ),
        ("saved", {"train_split": "train[:4]"}, r"Expected splits among train, validation, test, got train\[:4\]"),
        ("parquet", {"val_split": "val"}, 'parquet cannot be read: Unknown split "val". Should be one of .*validation'),
        ("parquet/*.parquet", {}, r"but parquet/\*.parquet does not exist"),
        ("empty", {}, "empty cannot be read: .*doesn't contain any data files"),
        ("saved", {"columns": Columns("picture")}, "the column picture in split train of saved, which has image, kind"),
        (
            "saved",
            {"class_names": ["a", "b"]},
            r"in column 'kind' of split train of saved to be .* 2 class_names, got \[2\]",
        ),
    ],
)
def test_mistakes_are_told_in_a_line(tmp_path, saved, parquet, monkeypatch, path, options, message):
    monkeypatch.chdir(tmp_path)
    os.mkdir("empty")
    with pytest.raises(ValueError, match=message) as caught:
        HuggingFaceDataModule(path, **{"columns": COLUMNS, **options}).open_parts()
    assert "\n" not in str(caught.value)


def test_a_source_takes_a_data_set_of_the_users_own(rows):
    source = HuggingFaceSource(of(rows).shuffle(seed=1).select(range(5)), COLUMNS)
    assert len(source) == 5
    assert {source.key(n) for n in range(5)} < {row["image"]["path"] for row in rows}
    assert source.read(2).image == rows[int(source.key(2)[:2])]["image"]["bytes"]
