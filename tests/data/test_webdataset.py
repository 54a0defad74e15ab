"""Tars through the data module: exact where they are read by position, and as a stream of tars drawn at random."""

import json
import os
import shutil

import pytest
import torch
import torch.distributed as dist
import yaml
from lightning.pytorch.utilities import rank_zero_only
from recording import record, same
from test_map_style import SMALL
from test_tar_stream import uneven_tars
from test_tars import img2dataset_files, picture, write_tar

from siglightning.batch import InputSpec
from siglightning.cli import main
from siglightning.data import GlobalBatchSampler, LabelNoise, WebDatasetDataModule
from siglightning.data.sources.webdataset import find_tars
from siglightning.distributed.local import preload, run_ranks


@pytest.fixture(scope="module")
def tars(tmp_path_factory):
    return uneven_tars(tmp_path_factory.mktemp("tars"))


def module(tars, num_workers=0, **options):
    return WebDatasetDataModule(tars, global_batch_size=6, num_workers=num_workers, seed=3, **options)


def streamed(tars, num_workers=0, **options):
    return module(
        tars, num_workers, **{"val": tars, "resampled": True, "samples_per_epoch": 30, "shuffle_buffer": 8} | options
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_by_position_a_run_resumes_to_the_byte(tars, tmp_path, num_workers):
    """Thirty samples, three of them held out: four steps an epoch."""
    whole = record(module(tars, num_workers), tmp_path, 10)
    seen = [key for _, ids, _, _ in whole[:4] for key in ids]
    assert len(set(seen)) == 24
    before = record(module(tars), tmp_path, 6, save=tmp_path / "last.ckpt")
    after = record(module(tars, num_workers), tmp_path, 10, resume=tmp_path / "last.ckpt")
    assert same(before + after, whole)


def test_neighbours_are_read_together_and_shared_out_among_processes(tmp_path):
    paths = [str(write_tar(tmp_path / f"{n:02d}.tar", img2dataset_files(n, 4))) for n in range(25)]
    data = module(paths, val=paths[:1])
    data.input_spec = InputSpec(32, lambda captions: torch.zeros(len(captions), 2, dtype=torch.int64))
    data.setup()
    order = data.order()
    rows = order(0)
    assert sorted(rows) == list(range(100))
    assert [len(set(rows[first : first + 40] // 4)) for first in (0, 40)] == [10, 10]  # ten tars at a time
    samplers = [GlobalBatchSampler(100, 12, rank, size, order=order) for size in (1, 2, 3) for rank in range(size)]
    one, two, three = ([list(s) for s in samplers[a:b]] for a, b in ((0, 1), (1, 3), (3, 6)))
    for step in range(8):
        assert one[0][step] == two[0][step] + two[1][step] == three[0][step] + three[1][step] + three[2][step]


def test_an_epoch_of_a_stream_may_be_as_long_as_one_likes(tars):
    data = streamed(tars, samples_per_epoch=10**15)
    data.input_spec = InputSpec(32, lambda captions: torch.zeros(len(captions), 2, dtype=torch.int64))
    data.setup()
    assert data.steps_per_epoch == 10**15 // 6
    assert len(next(iter(data.train_dataloader()))["id"]) == 6


@pytest.mark.parametrize("num_workers", [0, 2])
def test_after_a_resume_a_stream_goes_other_ways_and_says_so(tars, tmp_path, num_workers, capsys):
    whole = record(streamed(tars, num_workers), tmp_path, 8)
    assert same(whole, record(streamed(tars, num_workers), tmp_path, 8))
    before = record(streamed(tars, num_workers), tmp_path, 3, save=tmp_path / "last.ckpt")
    assert same(before, whole[:3])
    assert "statistical" in WebDatasetDataModule.__doc__
    assert "undisturbed" not in capsys.readouterr().out
    after = record(streamed(tars, num_workers), tmp_path, 8, resume=tmp_path / "last.ckpt")
    assert (
        "the samples from here on are not the ones that an undisturbed run would have seen" in capsys.readouterr().out
    )
    assert len(after) == 5
    assert not same(after[:2], whole[3:5])
    assert not same(after[:2], whole[:2])  # nor is the epoch begun again
    with pytest.raises(ValueError, match=r"training data of the checkpoint, got others: .*fingerprint: "):
        record(streamed(tars[:3], num_workers), tmp_path, 8, resume=tmp_path / "last.ckpt")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"samples_per_epoch": None}, "`data.init_args.samples_per_epoch` says how long an epoch of a stream is"),
        ({"resampled": False}, "belongs to `resampled: true`: got 30 with `resampled: false`"),
        ({"noise": LabelNoise(["text"], 0.5)}, "a stream does not know them"),
        ({"val": None}, "name a set to validate on"),
        ({"samples_per_epoch": 0}, "must be at least 1, got 0 and 8"),
        ({"shuffle_buffer": 0}, "must be at least 1, got 30 and 0"),
        (
            {"train": "s3://bucket/{0..3}.tar"},
            "got s3://bucket/0.tar. For example: `pipe:aws s3 cp",
        ),
        ({"train": "/gone/{0..3}.tar"}, "Expected tars at all of the 4 places, missing: /gone/0.tar"),
        ({"language_temperature": 2.0}, "needs a source that tells the language"),
    ],
)
def test_mistakes_are_said_before_training(tars, tmp_path, options, message):
    train = options.pop("train", tars)
    with pytest.raises(ValueError, match=message):
        record(streamed(train, **{"val": tars} | options), tmp_path, 1)


def test_a_stream_cannot_be_overfitted(tars, tmp_path):
    with pytest.raises(ValueError, match=r"`trainer.overfit_batches` needs the same samples again"):
        record(streamed(tars), tmp_path, 1, overfit_batches=2)


@pytest.mark.parametrize("name", ["webdataset", "webdataset_streamed"])
def test_shipped_configurations_are_understood(name, capsys):
    assert main(["fit", "--config", "quickstart", "--config", f"data/{name}", "--print_config"]) == 0
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    assert data["class_path"] == "siglightning.data.WebDatasetDataModule"
    options = data["init_args"]
    assert options["resampled"] == (name == "webdataset_streamed")
    assert options["members"]["image"][:2] == ["jpg", "jpeg"]
    assert len(find_tars(options["train"])) == (41408 if options["resampled"] else 100)


def bad_tars(folder):
    """Three good tars and three that are not, with every kind of bad sample between."""
    for shard in range(3):
        files = list(img2dataset_files(shard, 12))
        files[6:6] = [("x0.jpg", picture(1)), ("x1.txt", b"alone"), ("x2.jpg", b"<html>"), ("x2.txt", b"page")]
        files[22:22] = [("y0.jpg", picture(1)), ("y0.txt", b"caf\xe9"), ("y1.jpg", picture(1)), ("y1.txt", b"")]
        write_tar(folder / f"{shard}.tar", files)
    content = write_tar(folder / "cut.tar", img2dataset_files(5, 12)).read_bytes()
    (folder / "cut.tar").write_bytes(content[: len(content) // 2])
    (folder / "page.tar").write_bytes(b"<html>404</html>")
    return folder


STREAM = ["--data.resampled=true", "--data.samples_per_epoch=64", "--data.shuffle_buffer=30"]


@pytest.mark.parametrize("flags", [[], [*STREAM, "--data.val=tars"]])
def test_a_fit_on_tars_with_bad_samples_finishes(tmp_path, monkeypatch, capsys, flags):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    (tmp_path / "tars").mkdir()
    bad_tars(tmp_path / "tars")
    data = ["--data=WebDatasetDataModule", "--data.train=tars", "--data.global_batch_size=16", *flags]
    code = main(["fit", "--config", "small.yaml", *data, "--data.max_bad_fraction=0.5", "--run_dir", "run"])
    assert code == 0, "".join(capsys.readouterr())
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
    assert all(".tar/" in line["key"] for line in lines)
    tar = "unreadable tar" if flags else "truncated tar"
    assert {line["reason"] for line in lines} >= {"missing member", "no picture", "not UTF-8", "empty caption", tar}
    assert "t2i_recall@1" in json.loads((tmp_path / "run" / "summary.json").read_text())["validation"]


def fit_on_this_rank(folder):
    """As a launcher's process, which finds its rank in the environment; each has fewer samples than it needs steps."""
    rank = dist.get_rank()
    rank_zero_only.rank = rank  # read by Lightning when it was imported, before this process knew
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    data = ["--data=WebDatasetDataModule", f"--data.train={folder}/train", f"--data.val={folder}/train"]
    flags = [
        "--data.global_batch_size=12",
        "--trainer.devices=3",
        "--trainer.strategy=ring_ddp",
        f"--run_dir={folder}/run",
    ]
    code = main(["fit", "--config", f"{folder}/small.yaml", *data, *STREAM, *flags, "--trainer.max_steps=8"])
    assert code == 0
    return torch.load(f"{folder}/run/checkpoints/step-00000008.ckpt", weights_only=True)["global_step"]


def test_tars_of_different_length_never_hang_three_processes(tars, tmp_path):
    """Eight steps over an epoch's end, four samples a step and process."""
    (tmp_path / "small.yaml").write_text(SMALL)
    shutil.copytree(os.path.dirname(tars[0]), tmp_path / "train")
    preload("siglightning.cli")
    assert run_ranks(3, fit_on_this_rank, str(tmp_path)) == [8, 8, 8]
