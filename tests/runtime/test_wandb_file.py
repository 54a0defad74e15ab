"""W&B's own file: read, cut back to a checkpoint, and told from one that ends early."""

import shutil

import pytest
import wandb

from siglightning.runtime.wandb_file import cut_offline_runs, history_row, is_whole, read_entries

STEPS, WIDTH = 40, 300  # so much that records lie across the ends of blocks


@pytest.fixture(scope="module")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded")
    run = wandb.init(project="here", dir=folder, id="abc", mode="offline", settings=wandb.Settings(console="off"))
    for step in range(STEPS):
        run.log({f"value {number}": step + number / 7 for number in range(WIDTH)} | {"global_step": step})
    run.finish()
    return folder / "wandb"


@pytest.fixture
def folder(recorded, tmp_path):
    return shutil.copytree(recorded, tmp_path / "wandb", symlinks=True)


def file_in(folder):
    (path,) = folder.glob("offline-run-*/run-abc.wandb")
    return path


def rows(path):
    return [row for entry in read_entries(path) if (row := history_row(entry.record))]


def test_every_number_is_read(folder):
    assert file_in(folder).stat().st_size > 5 * 32768
    found = rows(file_in(folder))
    assert [row["global_step"] for row in found] == list(range(STEPS))
    assert all(row[f"value {n}"] == step + n / 7 for step, row in enumerate(found) for n in range(WIDTH))


@pytest.mark.parametrize("step", [0, 1, 17, STEPS - 1])
def test_a_cut_file_ends_before_the_step(folder, step):
    assert cut_offline_runs(folder, step) == []
    assert [row["global_step"] for row in rows(file_in(folder))] == list(range(step))
    kinds = [entry.record.WhichOneof("record_type") for entry in read_entries(file_in(folder))]
    assert kinds[:2] == ["header", "run"]
    assert not is_whole(file_in(folder))


def test_nothing_is_cut_that_need_not_or_must_not_be(folder):
    path = file_in(folder)
    before = path.read_bytes()
    assert cut_offline_runs(folder, STEPS) == []
    path.with_name(path.name + ".synced").touch()  # as W&B marks what its server has
    assert cut_offline_runs(folder, 5) == [path]
    assert path.read_bytes() == before
    assert is_whole(path)


@pytest.mark.parametrize("lost", [1, 40, 5000, 200_000])
def test_a_file_that_ends_early_is_not_whole(folder, lost):
    path = file_in(folder)
    content = path.read_bytes()
    path.write_bytes(content[:-lost])
    assert not is_whole(path)
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert not is_whole(path), "a damaged record is none"


def test_another_file_is_refused(tmp_path):
    (tmp_path / "run-x.wandb").write_bytes(b"something else")
    with pytest.raises(ValueError, match=r"Expected a file of W&B, got .*run-x\.wandb"):
        list(read_entries(tmp_path / "run-x.wandb"))
