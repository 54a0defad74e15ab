"""Pictures within Parquet: unpacked once, read as they lie, in memory that does not grow with the file."""

import json
import os
import pickle
import subprocess
import sys
from multiprocessing import get_context

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_images import encoded

from siglightning.batch import InputSpec
from siglightning.data import Columns, TableDataModule, TableSource, unpacked
from siglightning.data.images import decode
from siglightning.data.pictograms import PictogramArchive

COLUMNS = Columns(label="kind")


@pytest.fixture(scope="module")
def rows():
    """Thirty real pictures as PNG files, with a caption and a class."""
    archive = PictogramArchive.open()
    pixels = [archive.read_image(row).permute(1, 2, 0).numpy() for row in range(0, 900, 30)]
    return [
        {"image": encoded(array, "PNG"), "caption": f"drawing {n}", "kind": ("cat", "dog")[n % 2]}
        for n, array in enumerate(pixels)
    ]


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "siglightning" / "tables"


def write(path, rows, **options):
    pq.write_table(pa.Table.from_pylist(rows), path, **options)
    return path


def by_hand(path, row):
    """One row through Parquet alone, the file read whole."""
    found = pq.read_table(path).slice(row, 1).to_pylist()[0]
    return found["image"], [found["caption"]], found["kind"]


def test_a_part_without_rows_is_no_obstacle(tmp_path, rows):
    """Spark writes such parts."""
    write(tmp_path / "part-0.parquet", rows[:20])
    pq.write_table(pa.Table.from_pylist(rows[:1]).slice(0, 0), tmp_path / "part-1.parquet")
    write(tmp_path / "part-2.parquet", rows[20:])
    source = TableSource(sorted(tmp_path.glob("part-*.parquet")), COLUMNS)
    assert [source.read(row).captions for row in (0, 19, 20, 29)] == [[rows[row]["caption"]] for row in (0, 19, 20, 29)]


@pytest.mark.parametrize("options", [{}, {"row_group_size": 7}, {"compression": "zstd", "use_dictionary": False}])
def test_rows_are_those_of_the_parquet_file(tmp_path, rows, options):
    path = write(tmp_path / "table.parquet", rows, **options)
    source = TableSource(path, COLUMNS)
    assert (len(source), source.key(29), source.class_names) == (30, "29", ["cat", "dog"])
    for row in (0, 6, 7, 29):
        raw = source.read(row)
        assert (raw.image, raw.captions, source.class_names[raw.labels[0]]) == by_hand(path, row)
    assert decode(source.read(3).image).shape == (3, 64, 64)


def test_structs_name_their_pictures_where_the_names_differ(tmp_path, rows):
    def structs(names):
        return [row | {"image": {"bytes": row["image"], "path": name}} for row, name in zip(rows, names, strict=True)]

    names = {"own": [f"{n}.png" for n in range(30)], "same": ["a.png"] * 30, "full": [f"/x/{n}.png" for n in range(30)]}
    for kind, key in (("own", "4.png"), ("same", "4"), ("full", "4")):
        source = TableSource(write(tmp_path / f"{kind}.parquet", structs(names[kind])), COLUMNS)
        assert source.key(4) == key
        assert [source.read(n).image for n in range(30)] == [row["image"] for row in rows]


def test_shards_are_one_table(tmp_path, rows, cache):
    for number in range(3):
        write(tmp_path / f"shard-{number}.parquet", rows[number * 10 : number * 10 + 10])
    whole = TableSource(write(tmp_path / "whole.parquet", rows), COLUMNS)
    listed = [tmp_path / f"shard-{number}.parquet" for number in range(3)]
    for path in (str(tmp_path / "shard-*.parquet"), listed):
        source = TableSource(path, COLUMNS)
        assert [source.read(n) for n in range(30)] == [whole.read(n) for n in range(30)]
        assert source.fingerprint == whole.fingerprint  # however the rows are divided
    assert TableSource(listed[::-1], COLUMNS).fingerprint != whole.fingerprint
    assert len(list(cache.glob("*.arrow"))) == 4

    module = TableDataModule([str(path) for path in listed], columns=COLUMNS, global_batch_size=9)
    module.input_spec = InputSpec(32, None)
    module.setup()
    assert (len(module.train_set), len(module.val_set)) == (27, 3)


def test_a_parquet_file_is_unpacked_again_when_it_has_changed(tmp_path, rows, cache, capsys):
    path = write(tmp_path / "table.parquet", rows)
    first = TableSource(path)
    (kept,) = cache.glob("*.arrow")
    (cache / f".{kept.name}.999999.tmp").write_bytes(b"of a process that was killed")
    os.utime(kept, ns=(1, 1))
    assert TableSource(path).read(0) == first.read(0)
    assert os.stat(kept).st_mtime_ns == 1  # read, not written again
    write(path, rows[::-1])
    os.utime(path, ns=(5, 5))
    assert TableSource(path).read(0).image == rows[-1]["image"]
    assert first.read(0).image == rows[0]["image"]  # who has opened the old one still reads it
    assert [p.name for p in cache.iterdir() if p.suffix != ".lock"] == [p.name for p in cache.glob("*.arrow")]
    assert len(list(cache.glob("*.arrow"))) == 1
    assert capsys.readouterr().out.count("Unpacking the pictures of") == 2


def read_some(path, barrier, queue):
    barrier.wait()
    source = TableSource(path)
    queue.put([source.read(n).image for n in range(0, len(source), 1000)])


def test_processes_that_race_unpack_once(tmp_path, cache, capfd):
    contents = [np.random.default_rng(n).bytes(10_000) for n in range(5000)]  # so large that all find nothing there
    path = write(tmp_path / "table.parquet", [{"image": content, "caption": "x"} for content in contents])
    context = get_context("fork")
    barrier, queue = context.Barrier(4), context.Queue()
    processes = [context.Process(target=read_some, args=(path, barrier, queue)) for _ in range(4)]
    for process in processes:
        process.start()
    found = [queue.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert found == [contents[::1000]] * 4
    assert len(list(cache.glob("*.arrow"))) == 1
    assert capfd.readouterr().out.count("Unpacking") == 1


def test_a_pickled_source_is_a_few_bytes(tmp_path, rows):
    source = TableSource(write(tmp_path / "table.parquet", rows), COLUMNS)
    content = pickle.dumps(source)
    assert len(content) < 2000
    assert [pickle.loads(content).read(n) for n in range(30)] == [source.read(n) for n in range(30)]


def test_a_folder_that_cannot_take_the_pictures_is_refused(tmp_path, rows, monkeypatch):
    path = write(tmp_path / "table.parquet", rows)
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(
        ValueError, match=r"cannot be unpacked into .*file: File exists. Give another folder .*`cache_dir`"
    ):
        TableSource(path, cache_dir=tmp_path / "file")
    monkeypatch.setattr(unpacked, "_SPARE_BYTES", 2**62)
    with pytest.raises(ValueError, match=r"need 0\.0 GB unpacked, but .* has .* GB free. Give another folder"):
        TableSource(path)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ([], "at least one table, got an empty list"),
        ("shards", "is a folder. Name its files, as in shards/\\*.parquet"),
        ("shards/*.csv", "shards/\\*.csv does not exist"),
        (["shards/a.parquet", "other/a.parquet"], "different folders, .* Give `image_root`"),
        (["shards/a.parquet", "shards/numbers.parquet"], "Expected the same columns in"),
    ],
)
def test_wrong_parts_are_refused(tmp_path, monkeypatch, path, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("shards", "other"):
        (tmp_path / folder).mkdir()
        write(tmp_path / folder / "a.parquet", [{"image": "a.png", "caption": "a"}])
    write(tmp_path / "shards" / "numbers.parquet", [{"image": "a.png", "caption": 5}])
    with pytest.raises(ValueError, match=message):
        TableSource(path)


MEASURE = """
import json, resource, sys
from siglightning.data import TableSource

def status(name):
    return int(next(line.split()[1] for line in open("/proc/self/status") if line.startswith(name))) / 1024

def opened(path):
    before = status("VmHWM")
    return TableSource(path), status("VmHWM") - before

opened(sys.argv[1])  # a small one: libraries are loaded
source, opening = opened(sys.argv[2])
before, most, size = status("RssAnon"), 0.0, 0
for row in range(len(source)):
    size += len(source.read(row).image)
    most = max(most, status("RssAnon") - before) if row % 100 == 0 else most
print(json.dumps({"opening": opening, "reading": most, "bytes": size}))
"""


def test_memory_does_not_grow_with_the_file(tmp_path, rows):
    """300 MB of pictures in one group of rows. Pages that are mapped from the file are the system's to take back."""
    random = np.random.default_rng(0)
    small = write(tmp_path / "small.parquet", rows)
    large = write(tmp_path / "large.parquet", [{"image": random.bytes(10_000), "caption": "x"} for _ in range(30_000)])
    assert pq.read_metadata(large).num_row_groups == 1
    child = subprocess.run(
        [sys.executable, "-c", MEASURE, str(small), str(large)], capture_output=True, text=True, timeout=120, check=True
    )
    found = json.loads(child.stdout.splitlines()[-1])
    assert found["bytes"] == 300_000_000
    assert found["opening"] < 120  # MiB; read whole it would be some 350
    assert found["reading"] < 32
