"""Chunks of litdata: rows against a reader of a few lines, a cache of limited size, and what is refused."""

import io
import json
import os
import pickle
import struct
import sys
from pathlib import Path

import litdata
import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from siglightning.data import LitDataSource
from siglightning.data.images import BadSampleError, decode
from siglightning.data.pictograms import PictogramArchive
from siglightning.data.sources import Columns
from siglightning.data.sources.chunks import Chunks

NAMES = ["cat", "dog", "owl"]
LABELLED = Columns(label="label")


def pixels(number):
    return PictogramArchive.open().read_image(number * 30).permute(1, 2, 0).numpy()


def encoded(number, kind="PNG"):
    buffer = io.BytesIO()
    Image.fromarray(pixels(number)).save(buffer, kind)
    return buffer.getvalue()


def sample(number):
    return {"image": encoded(number), "caption": f"drawing {number}, für alle", "label": number % 3}


def write(folder, function, count, chunk_size=4):
    inputs = list(range(count))
    options = {"chunk_size": chunk_size, "num_workers": 1, "start_method": "fork", "verbose": False}
    litdata.optimize(function, inputs, str(folder), **options)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eighty samples in twenty chunks."""
    return write(tmp_path_factory.mktemp("data") / "train", sample, 80)


def by_hand(folder):
    """(chunk, row, sample): rows are an Arrow file at the end of a chunk, before its length and eight letters."""
    for chunk in json.loads(Path(folder, "index.json").read_text())["chunks"]:
        content = Path(folder, chunk["filename"]).read_bytes()
        [length] = struct.unpack("<I", content[-12:-8])
        rows = pa.ipc.open_file(content[-12 - length : -12]).read_all().to_pylist()
        assert len(rows) == chunk["chunk_size"]
        yield from ((chunk["filename"], number, row) for number, row in enumerate(rows))


def opened(folder, **options):
    return LitDataSource(Chunks(folder, **options), LABELLED, NAMES)


def remote(folder, tmp_path, chunks=20, **options):
    """The same set behind a URL, with a cache for so many chunks."""
    largest = max(os.path.getsize(f"{folder}/{name}") for name in os.listdir(folder))
    return opened(f"local:{folder}", cache_dir=str(tmp_path), max_cache_bytes=chunks * largest, **options)


def cached(tmp_path):
    return sorted(path.name for path in tmp_path.glob("siglightning-*/*.bin"))


@pytest.mark.parametrize("where", ["folder", "url"])
def test_rows_are_those_of_the_chunks(folder, tmp_path, where):
    source = opened(folder) if where == "folder" else remote(folder, tmp_path)
    assert (len(source), source.class_names, source.one_label) == (80, NAMES, True)
    assert source.bounds.tolist() == list(range(0, 81, 4))
    expected = list(by_hand(folder))
    for index in np.random.default_rng(0).permutation(80).tolist():
        name, number, row = expected[index]
        raw = source.read(index)
        assert source.key(index) == f"{name}/{number}"
        assert (raw.image, raw.captions, raw.labels) == (row["image"], [row["caption"]], [row["label"]])
        original = int(row["caption"].split()[1].rstrip(","))
        np.testing.assert_array_equal(decode(raw.image).permute(1, 2, 0), pixels(original))


def as_array(number):
    return {"image": pixels(number).transpose(2, 0, 1).copy(), "caption": f"drawing {number}"}


def as_tensor(number):
    return {"image": torch.from_numpy(pixels(number)).permute(2, 0, 1).contiguous(), "caption": f"drawing {number}"}


def as_pillow(number):
    return {"image": Image.fromarray(pixels(number)), "caption": f"drawing {number}"}


def as_jpeg(number):
    return {"image": Image.open(io.BytesIO(encoded(number, "JPEG"))), "caption": f"drawing {number}"}


def first_leaves(path):
    """Pictures as they lie in a chunk: the number of items, where they begin, and in each the sizes of its leaves."""
    content = path.read_bytes()
    [count] = struct.unpack_from("<I", content)
    begins = struct.unpack_from(f"<{count}I", content, 4)
    for begin in begins:
        size, _ = struct.unpack_from("<II", content, begin)
        yield content[begin + 8 : begin + 8 + size]


@pytest.mark.parametrize("function", [as_array, as_tensor, as_pillow, as_jpeg])
def test_pictures_that_are_no_files(tmp_path, function):
    """Chunks without an Arrow table, as older releases wrote all of them."""
    place = write(tmp_path / "data", function, 4)
    assert not Path(place, "chunk-0-0.bin").read_bytes().endswith(b"LDARW01\0")
    expected, tolerance = [pixels(number) for number in range(4)], 0
    if function is as_jpeg:
        leaves, tolerance = first_leaves(Path(place, "chunk-0-0.bin")), 4  # two decoders round
        expected = [np.asarray(Image.open(io.BytesIO(leaf))) for leaf in leaves]
    source = LitDataSource(Chunks(place))
    for number in range(4):
        raw = source.read(number)
        assert raw.captions == [f"drawing {number}"]
        assert (raw.image.dtype, raw.image.shape) == (torch.uint8, (3, 64, 64))
        assert np.abs(raw.image.permute(1, 2, 0).numpy().astype(int) - expected[number]).max() <= tolerance


def rich(number):
    picture = {"bytes": encoded(number), "path": f"{number}.png"}
    said = [f"two {number}"] * (number % 2 + 1)
    return {"file": picture, "said": said, "tags": NAMES[: number % 3], "id": f"s{number}"}


def test_several_captions_labels_and_keys(tmp_path):
    columns = Columns("file", ["said"], "tags", key="id")
    source = LitDataSource(Chunks(write(tmp_path / "data", rich, 9)), columns, NAMES)
    assert not source.one_label
    for number in range(9):
        raw = source.read(number)
        assert source.key(number) == f"s{number}"
        assert raw.image == encoded(number)
        assert raw.captions == [f"two {number}"] * (number % 2 + 1)
        assert raw.labels == list(range(number % 3))


def test_only_what_is_read_is_fetched(folder, tmp_path):
    source = remote(folder, tmp_path)
    assert cached(tmp_path) == ["chunk-0-0.bin"]  # the first row tells the columns
    source.read(30)
    assert cached(tmp_path) == ["chunk-0-0.bin", "chunk-0-7.bin"]
    assert sorted(os.listdir(folder)) == sorted([f"chunk-0-{n}.bin" for n in range(20)] + ["index.json"])


def test_the_cache_does_not_grow_without_limit(folder, tmp_path):
    source = remote(folder, tmp_path, chunks=12)
    limit = source._chunks._max_bytes
    expected = list(by_hand(folder))
    for index in np.random.default_rng(1).integers(0, 80, 400).tolist():
        assert source.read(index).image == expected[index][2]["image"]
        assert sum(path.stat().st_size for path in tmp_path.glob("siglightning-*/*.bin")) <= limit


def test_the_longest_unused_chunk_is_thrown_out_whoever_used_it(folder, tmp_path):
    source = remote(folder, tmp_path, chunks=12)
    for chunk in range(10):
        source.read(chunk * 4)
    remote(folder, tmp_path, chunks=12).read(0)  # as another process
    for chunk in range(10, 17):
        source.read(chunk * 4)
    left = cached(tmp_path)
    assert "chunk-0-0.bin" in left
    assert "chunk-0-1.bin" not in left


def test_a_chunk_that_others_throw_out_is_fetched_again(folder, tmp_path):
    source = remote(folder, tmp_path)
    expected = [row["image"] for _, _, row in by_hand(folder)]
    assert source.read(40).image == expected[40]
    for path in tmp_path.glob("siglightning-*/*.bin"):
        path.unlink()
    assert source.read(41).image == expected[41]  # of a chunk that is still open
    assert cached(tmp_path) == []
    assert source.read(44).image == expected[44]
    assert cached(tmp_path) == ["chunk-0-11.bin"]


class Reading:
    """A data set of the bytes of a source, for a real loader."""

    def __init__(self, source, order):
        self.source, self.order = source, order

    def __len__(self):
        return len(self.order)

    def __getitem__(self, index):
        return self.order[index], self.source.read(self.order[index]).image


def test_forked_processes_share_a_small_cache(folder, tmp_path):
    source = remote(folder, tmp_path, chunks=12)
    source.read(0)  # what is open here is inherited, and not to be used
    expected = [row["image"] for _, _, row in by_hand(folder)]
    order = np.random.default_rng(2).integers(0, 80, 3000).tolist()
    loader = DataLoader(Reading(source, order), batch_size=50, num_workers=2, collate_fn=list)
    read = [pair for batch in loader for pair in batch]
    assert [index for index, _ in read] == order
    assert all(image == expected[index] for index, image in read)
    assert sum(path.stat().st_size for path in tmp_path.glob("siglightning-*/*.bin")) <= source._chunks._max_bytes
    again = pickle.loads(pickle.dumps(source))
    assert [again.read(index).image for index in (0, 79, 40)] == [expected[index] for index in (0, 79, 40)]


def test_a_set_that_was_written_anew_is_not_read_from_an_old_cache(tmp_path):
    place = write(tmp_path / "data", sample, 8)
    first = remote(place, tmp_path / "cache")
    assert first.read(0).image == encoded(0)
    for name in os.listdir(place):
        os.unlink(f"{place}/{name}")
    write(place, lambda number: sample(number + 50), 8)
    second = remote(place, tmp_path / "cache")
    assert second.read(0).image == encoded(50)
    assert second.fingerprint != first.fingerprint


def edited(folder, tmp_path, **config):
    """A copy of the set whose index says something else."""
    index = json.loads(Path(folder, "index.json").read_text())
    index["config"] |= config
    (tmp_path / "edited").mkdir()
    (tmp_path / "edited" / "index.json").write_text(json.dumps(index))
    for name in os.listdir(folder):
        if name != "index.json":
            (tmp_path / "edited" / name).symlink_to(f"{folder}/{name}")
    return str(tmp_path / "edited")


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"item_loader": "TokensLoader"},
            "chunks of another loader than PyTreeLoader, which cannot be read by",
        ),
        ({"encryption": {"algorithm": "fernet"}}, "encrypted chunks"),
        ({"compression": "zstd", "compression_level": "batch"}, "samples compressed in batches"),
    ],
)
def test_kinds_that_cannot_be_read_by_row_are_refused(folder, tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        Chunks(edited(folder, tmp_path, **config))


@pytest.mark.parametrize(
    ("columns", "names", "message"),
    [
        (
            Columns("picture", ["text"]),
            None,
            "Expected the columns picture, text in .*, which has image, caption",
        ),
        (Columns(label="label"), None, "give both or neither, got 'label' and None"),
        (Columns(), NAMES, "give both or neither, got None and"),
    ],
)
def test_wrong_columns_are_refused(folder, columns, names, message):
    with pytest.raises(ValueError, match=message):
        LitDataSource(Chunks(folder), columns, names)


def test_wrong_places_are_refused(folder, tmp_path):
    for place in (os.path.dirname(folder), str(tmp_path / "gone"), f"local:{tmp_path}"):
        with pytest.raises(ValueError, match=r"index.json cannot be read: .* Is it one level too high or too low\?"):
            Chunks(place)
    with pytest.raises(ValueError, match=r"need a cache of at least .* raise `data.init_args.cache_gib`"):
        remote(folder, tmp_path, chunks=3)
    place = edited(folder, tmp_path)
    os.unlink(f"{place}/chunk-0-7.bin")
    with pytest.raises(ValueError, match=r"Expected 20 chunks in .*, but chunk-0-7.bin do not exist"):
        Chunks(place)


def test_samples_without_names_are_refused(tmp_path):
    place = write(tmp_path / "data", lambda number: (encoded(number), number), 4)
    with pytest.raises(ValueError, match="Expected each sample to be a dictionary, got tuple: give columns names"):
        LitDataSource(Chunks(place))


def test_without_the_library_the_remedy_is_named(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "litdata", None)
    with pytest.raises(ValueError, match=r'pip install "siglightning\[litdata\]"'):
        Chunks(folder)


def odd_sample(number):
    """Every seventh is bad in one way or another."""
    bad = {"image": b"<html>"}, {"image": b""}, {"caption": "  "}, {"image": encoded(number)[:200]}
    return sample(number) | (bad[number // 7 % 4] if number % 7 == 0 else {})


def cut(place, chunk):
    """The second half of a chunk is missing."""
    path = Path(place, f"chunk-0-{chunk}.bin")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_bad_samples_and_a_cut_chunk_have_their_reasons(tmp_path):
    place = write(tmp_path / "data", odd_sample, 40)
    cut(place, 4)
    for source in (LitDataSource(Chunks(place)), LitDataSource(Chunks(f"local:{place}", str(tmp_path / "cache")))):
        with pytest.raises(BadSampleError, match="empty caption"):
            source.read(14)
        with pytest.raises(BadSampleError, match=r"truncated chunk: .*chunk-0-4.bin has not the .* bytes"):
            source.read(17)
        for index, reason in ((0, "no picture"), (7, "empty"), (21, "damaged")):
            with pytest.raises(BadSampleError, match=reason):
                decode(source.read(index).image)


def test_a_damaged_item_is_a_bad_sample(tmp_path):
    place = write(tmp_path / "data", as_jpeg, 8)
    content = bytearray(Path(place, "chunk-0-1.bin").read_bytes())
    begin, end = struct.unpack_from("<II", content, 4 * 3)  # the third of four
    content[begin + 8 : end] = b"?" * (end - begin - 8)
    Path(place, "chunk-0-1.bin").write_bytes(content)
    source = LitDataSource(Chunks(place))
    with pytest.raises(BadSampleError, match="damaged"):
        source.read(6)
    assert source.read(7).captions == ["drawing 7"]
