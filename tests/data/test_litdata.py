"""Sets that litdata wrote, in runs: exact resumes, other numbers of processes, bad samples."""

import json
from pathlib import Path

import pytest
import torch
import yaml
from recording import record, same
from test_chunks import cached, cut, odd_sample, sample, write
from test_map_style import SMALL

from siglightning.batch import InputSpec
from siglightning.cli import main
from siglightning.data import GlobalBatchSampler, LitDataDataModule


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Eighty samples in twenty chunks."""
    return write(tmp_path_factory.mktemp("data") / "train", sample, 80)


def module(place, tmp_path, num_workers=0, **options):
    chunks = Path(place.removeprefix("local:")).glob("*.bin")
    sizes = [path.stat().st_size for path in chunks]
    cache = {"cache_dir": str(tmp_path / "cache"), "cache_gib": 13 * max(sizes) / 2**30}
    return LitDataDataModule(place, global_batch_size=6, num_workers=num_workers, seed=3, **cache, **options)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_resumes_to_the_byte(folder, tmp_path, num_workers):
    """Eighty samples, eight of them held out: twelve steps an epoch, and none left over."""
    whole = record(module(folder, tmp_path), tmp_path, 20)
    keys = [key for _, ids, _, _ in whole[:12] for key in ids]
    assert len(set(keys)) == 72
    url = f"local:{folder}"
    before = record(module(url, tmp_path, num_workers), tmp_path, 7, save=tmp_path / "last.ckpt")
    after = record(module(url, tmp_path, num_workers), tmp_path, 20, resume=tmp_path / "last.ckpt")
    assert same(before + after, whole)
    assert 10 <= len(cached(tmp_path / "cache")) < 20


def test_ten_chunks_at_a_time_and_shared_out_among_processes(tmp_path):
    place = write(tmp_path / "data", sample, 100)
    data = module(place, tmp_path, val=place)
    data.input_spec = InputSpec(32, lambda captions: torch.zeros(len(captions), 2, dtype=torch.int64))
    data.setup()
    order = data.order()
    assert sorted(order(0)) == list(range(100))
    assert [len(set(order(0)[first : first + 40] // 4)) for first in (0, 40)] == [10, 10]
    samplers = [GlobalBatchSampler(100, 12, rank, size, order=order) for size in (1, 2, 3) for rank in range(size)]
    one, two, three = ([list(s) for s in samplers[a:b]] for a, b in ((0, 1), (1, 3), (3, 6)))
    for step in range(8):
        assert one[0][step] == two[0][step] + two[1][step] == three[0][step] + three[1][step] + three[2][step]


def test_a_fit_on_a_set_with_bad_samples_finishes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small.yaml").write_text(SMALL)
    cut(write(tmp_path / "data", odd_sample, 56), 4)
    data = ["--data=LitDataDataModule", f"--data.train=local:{tmp_path}/data", "--data.global_batch_size=16"]
    flags = ["--data.cache_dir=cache", "--data.max_bad_fraction=0.5", "--data.num_workers=2", "--run_dir", "run"]
    code = main(["fit", "--config", "small.yaml", *data, *flags])
    assert code == 0, "".join(capsys.readouterr())
    lines = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
    assert {line["reason"] for line in lines} >= {"no picture", "empty caption", "truncated chunk"}
    assert all(line["key"].startswith("chunk-0-") for line in lines)
    assert "t2i_recall@1" in json.loads((tmp_path / "run" / "summary.json").read_text())["validation"]


def test_the_shipped_configuration_is_understood(capsys):
    assert main(["fit", "--config", "quickstart", "--config", "data/litdata", "--print_config"]) == 0
    data = yaml.safe_load(capsys.readouterr().out)["data"]
    assert data["class_path"] == "siglightning.data.LitDataDataModule"
    assert data["init_args"]["columns"]["captions"] == ["caption"]
