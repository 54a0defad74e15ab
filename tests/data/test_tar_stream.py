"""A stream of tars drawn at random: what it holds, who sees what of it, and what is broken in it."""

import collections
import gzip
import json
import os
import sys
from pathlib import Path

import pytest
from test_map_style import PLAIN
from test_tars import by_hand, img2dataset_files, picture, write_tar
from torch.utils.data import DataLoader

from siglightning.data import Augmentation, GlobalBatchSampler, Members, TarStream
from siglightning.data.bad_samples import BadSampleLog
from siglightning.data.map_style import Preparation
from siglightning.data.orders import as_they_are
from siglightning.data.streamed import StreamDataset


def uneven_tars(folder):
    """Thirty samples in four tars of different length."""
    return [
        str(write_tar(folder / f"{shard:05d}.tar", img2dataset_files(shard, count)))
        for shard, count in enumerate((9, 2, 15, 4))
    ]


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return uneven_tars(tmp_path_factory.mktemp("tars"))


@pytest.fixture(scope="module")
def everything(tars):
    """What the tars hold, by the key that samples have: files, read by hand."""
    return {f"{os.path.basename(tar)}/{key}": files for tar in tars for key, files in by_hand(tar).items()}


def taken_down():
    found = []
    return found, lambda key, error: found.append((key, error.reason))


def some(stream, count, seed=0, bad=None):
    flow = stream.open(seed, bad or taken_down()[1])
    return [next(flow) for _ in range(count)]


def test_a_stream_holds_the_samples_of_the_tars(tars, everything):
    found, bad = taken_down()
    seen = some(TarStream(tars, 100, buffer=20), 300, bad=bad)
    for key, raw in seen:
        assert raw.image == everything[key]["jpg"]
        assert raw.captions == [everything[key]["txt"].decode()]
    assert {key for key, _ in seen} == everything.keys()
    assert found == []


def test_a_stream_is_mixed_and_depends_on_its_seed(tars):
    keys = {
        (seed, buffer): [key for key, _ in some(TarStream(tars, 100, buffer=buffer), 60, seed)]
        for seed in (1, 2)
        for buffer in (1, 30)
    }
    assert keys[1, 30] == [key for key, _ in some(TarStream(tars, 100, buffer=30), 60, 1)]
    assert keys[1, 30] != keys[2, 30]
    neighbours = {
        buffer: sum(int(b[-4:]) == int(a[-4:]) + 1 for a, b in zip(keys[1, buffer], keys[1, buffer][1:], strict=False))
        for buffer in (1, 30)
    }
    assert neighbours[1] > 40  # tars in one piece
    assert neighbours[30] < 15
    drawn = [[key[:5] for key in keys[seed, 1]] for seed in (1, 2)]
    assert drawn[0] != drawn[1]


def test_a_stream_takes_json_labels_compressed_tars_commands_and_files(tars, everything, tmp_path):
    (tmp_path / "packed.tar.gz").write_bytes(gzip.compress(Path(tars[0]).read_bytes()))
    files = [("0.webp", picture(3, "WEBP")), ("0.cls", b"1"), ("0.json", b'{"a": ["x", "y"]}')]
    labelled = str(write_tar(tmp_path / "labelled.tar", files))
    for tar in (str(tmp_path / "packed.tar.gz"), f"pipe:cat {tars[0]}", f"file:{tars[0]}"):
        found, bad = taken_down()
        seen = some(TarStream([tar], 10, buffer=1), 18, bad=bad)
        assert [raw.image for _, raw in seen] == [files["jpg"] for files in list(everything.values())[:9] * 2]
        assert found == []
    stream = TarStream([labelled], 10, Members(captions=["json:a"], label="cls"), ["cat", "dog"], buffer=1)
    [(key, raw)] = some(stream, 1)
    assert (key, raw.captions, raw.labels) == ("labelled.tar/0", ["x", "y"], [1])
    assert raw.image == files[0][1]


def test_what_is_broken_is_taken_down_with_its_tar_and_reading_goes_on(tars, tmp_path):
    good = picture(0)
    files = [("00.jpg", good), ("01.txt", b"alone"), ("02.jpg", good), ("02.txt", b" "), ("03.jpg", good)]
    files += [("03.txt", b"caf\xe9"), ("04.jpg", good), ("04.txt", b"fine")]
    write_tar(tmp_path / "odd.tar", files)
    content, cut = Path(tars[2]).read_bytes(), tmp_path / "cut.tar"
    cut.write_bytes(content[: content.index(b"000020001.txt") + 520])  # within the text of the second sample
    (tmp_path / "page.tar").write_bytes(b"<html>")
    write_tar(tmp_path / "empty.tar", [("readme.md", b"nothing")])
    names = [f"pipe:cat {tmp_path}/{name}.tar" for name in ("odd", "cut", "page", "empty", "gone")]
    found, bad = taken_down()
    seen = some(TarStream(names, 10, buffer=1), 40, bad=bad)
    assert {key for key, _ in seen} == {"odd.tar/04", "cut.tar/000020000"}
    assert set(found) == {
        ("odd.tar/00", "missing member"),
        ("odd.tar/01", "missing member"),
        ("odd.tar/02", "empty caption"),
        ("odd.tar/03", "not UTF-8"),
        ("cut.tar/000020001", "truncated tar"),
        ("page.tar/", "unreadable tar"),
        ("empty.tar/", "empty tar"),
        ("gone.tar/", "unreadable tar"),
    }


def dataset(stream, log=None, **options):
    return StreamDataset(stream, Preparation(32, **options), log)


def loader(tars, rank, world_size, num_workers, per_epoch=50, seed=0):
    stream = dataset(TarStream(tars, per_epoch, buffer=8), augmentation=PLAIN, seed=seed)
    sampler = GlobalBatchSampler(per_epoch, 12, rank, world_size, order=as_they_are(per_epoch))
    return DataLoader(
        stream, batch_sampler=sampler, num_workers=num_workers, collate_fn=lambda samples: [s["id"] for s in samples],
        persistent_workers=num_workers > 0,
    )  # fmt: skip


@pytest.mark.parametrize("num_workers", [0, 2])
def test_every_process_has_its_own_stream_and_the_same_number_of_batches(tars, num_workers):
    epochs = {}
    for rank in range(3):
        batches = loader(tars, rank, 3, num_workers)
        for epoch in range(2):
            batches.batch_sampler.set_epoch(epoch)
            epochs[rank, epoch] = list(batches)
    assert [[len(batch) for batch in epoch] for epoch in epochs.values()] == [[4] * 4] * 6
    assert len({str(epoch) for epoch in epochs.values()}) == 6
    again = loader(tars, 1, 3, num_workers)
    again.batch_sampler.set_epoch(1)
    assert list(again) == epochs[1, 1]
    assert list(loader(tars, 1, 3, num_workers, seed=1)) != epochs[1, 0]
    if num_workers:  # each worker draws for itself
        assert epochs[0, 0][0] != epochs[0, 0][1]


def test_pictures_are_augmented_anew_each_time(tars):
    """A sample comes several times in an epoch of a stream."""
    for augmentation, most in ((None, 1), (Augmentation(), 4)):
        pictures = collections.defaultdict(set)
        for sample in dataset(TarStream(tars[1:2], 50, buffer=1), augmentation=augmentation).__getitems__(range(8)):
            pictures[sample["id"]].add(sample["image"].numpy().tobytes())
            assert sample["captions"] == [f"drawing {sample['id'][-1]} of shard 1, für alle"]
        assert [len(found) for found in pictures.values()] == [most, most]


class Sick(TarStream):
    """A stream whose third sample is not bad, but a mistake of the program."""

    def open(self, seed, bad):
        for number, (key, raw) in enumerate(super().open(seed, bad)):
            yield key, raw if number != 2 else type(raw)(image=7)


def test_other_errors_carry_sample_and_tar(tars, monkeypatch):
    with pytest.raises(RuntimeError, match=r"Sample 0000\d.tar/0000\d000\d of the stream failed: TypeError"):
        dataset(Sick(tars, 20, buffer=1)).__getitems__([0, 1, 2])
    monkeypatch.setattr(Members, "read", lambda *_: 1 / 0)
    with pytest.raises(RuntimeError, match=r"Sample 0000\d.tar/0000\d000\d of the tars failed: ZeroDivisionError"):
        dataset(TarStream(tars, 20, buffer=1))[0]
    monkeypatch.undo()
    monkeypatch.setattr("webdataset.tariterators.tarfile.open", lambda **_: 1 / 0)
    with pytest.raises(RuntimeError, match=r"Tar .*.tar failed after nothing: ZeroDivisionError"):
        dataset(TarStream(tars, 20, buffer=1))[0]


def test_the_next_good_sample_takes_the_place_of_a_bad_one_and_too_many_end_training(tmp_path):
    files = []
    for n in range(20):
        files += [(f"{n:02d}.jpg", b"<html>" if n % 5 == 3 else picture(n)), (f"{n:02d}.txt", b"x")]
    tar = str(write_tar(tmp_path / "00007.tar", files))
    log = BadSampleLog(tmp_path / "bad.jsonl", 1.0)
    ids = [sample["id"] for sample in dataset(TarStream([tar], 20, buffer=1), log).__getitems__(list(range(16)))]
    assert ids == [f"00007.tar/{n:02d}" for n in range(20) if n % 5 != 3]
    assert log.reasons == {"no picture": 4}
    lines = [json.loads(line) for line in (tmp_path / "bad.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [f"00007.tar/{n:02d}" for n in (3, 8, 13, 18)]
    many = dataset(TarStream([tar], 20, buffer=1), BadSampleLog(None, 1.0))
    assert len(many.__getitems__(list(range(500)))) == 500
    assert many.log.reasons["no picture"] > 100  # but never so many in a row
    strict = dataset(TarStream([tar], 20, buffer=1), BadSampleLog(None, 0.01))
    with pytest.raises(ValueError, match=r"got 3 of 14 \(3 no picture\), .*\. Most of them lie in 00007.tar \(3\)"):
        strict.__getitems__(list(range(16)))


def test_nothing_but_bad_samples_ends_at_once(tmp_path):
    tar = str(write_tar(tmp_path / "0.tar", [("0.jpg", b"<html>"), ("0.txt", b"x")]))
    (tmp_path / "1.tar").write_bytes(b"")
    for stream in (TarStream([tar], 9, buffer=1), TarStream([str(tmp_path / "1.tar")], 9, buffer=1)):
        with pytest.raises(ValueError, match=r"None of the last 100 samples up to .* could be used"):
            dataset(stream, BadSampleLog(None, 1.0))[0]


def test_without_the_library_the_remedy_is_named(tars, monkeypatch):
    monkeypatch.setitem(sys.modules, "webdataset", None)
    with pytest.raises(ValueError, match=r'pip install "siglightning\[webdataset\]"'):
        TarStream(tars, 10)
