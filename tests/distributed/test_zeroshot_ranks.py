"""Every evaluation of a contrastive task on 1, 2 and 3 processes, whose shares the data do not fill: equal numbers."""

import json
import os
import re
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image

from siglightning.cli import main
from siglightning.data import PictogramArchive
from siglightning.distributed.local import run_ranks

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from test_crossmodal3600 import write_xm3600

SETS = {"classes": ["test", "objects"], "languages": ["th", "quz", "objects", "average"]}
CONFIG = """
model:
  class_path: siglightning.tasks.ContrastiveTask
  init_args:
    network:
      class_path: siglightning.models.TwoTower
      init_args:
        image_tower: {name: "local:conv", kwargs: {width: 8, depths: [1, 1], groups: 4, patch: 8}}
        text_tower: {name: "local:text_transformer", kwargs: {width: 16, depth: 1, heads: 2}}
        embed_dim: 16
        context_length: 12
        image_size: 32
data:
  class_path: siglightning.data.FolderDataModule
  init_args:
    root: ROOT/own
    global_batch_size: 6
    eval_batch_size: 3
    max_bad_fraction: 0.5
    zeroshot_sets:
      objects:
        class_path: siglightning.data.FolderDataModule
        init_args: {root: ROOT/other, templates: cifar, eval_batch_size: 4, max_bad_fraction: 0.5, val_fraction: 0.75}
trainer:
  accelerator: cpu
  precision: 64-true
  enable_progress_bar: false
"""
PROBES = """\
  callbacks:
    - class_path: siglightning.callbacks.ProbeEvaluation
      init_args: {shots: [1, 5], l2_regs: [0.1, 1.0]}
"""
# Captions without classes, of which two sets are averaged, beside classes without captions.
LANGUAGES = """\
data:
  class_path: siglightning.data.Crossmodal3600DataModule
  init_args:
    root: ROOT/xm3600
    languages: [th, quz]
    global_batch_size: 6
    eval_batch_size: 2
"""


def write_trees(folder):
    archive = PictogramArchive.open()

    def write(path, number):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(archive.read_image(number * 31 % 9000).permute(1, 2, 0).numpy()).save(path)

    for part, count in (("train", 31), ("val", 8), ("test", 14)):
        for number in range(count):
            write(folder / "own" / part / ["cat", "dog", "owl", "yak"][number % 4] / f"{number:02}.png", number)
    for number in range(23):
        write(folder / "other" / f"kind {number % 7}" / f"{number:02}.png", number + 90)
    (folder / "own" / "test" / "cat" / "04.png").write_bytes(b"no picture")  # another one comes twice
    (folder / "xm3600").mkdir()
    write_xm3600(folder / "xm3600")
    model, data, sets, rest = re.split("(?m)^(?=data:|    zeroshot_sets:|trainer:)", CONFIG)
    for name, text in {
        "classes": [model, data, sets, rest, PROBES],
        "languages": [model, LANGUAGES, sets, rest],
    }.items():
        (folder / f"{name}.yaml").write_text("".join(text).replace("ROOT", str(folder)))


def evaluate(folder, name, world_size):
    run_dir = Path(folder, f"run-{name}-{world_size}")
    ring = ["--trainer.strategy=ring_ddp"] if world_size > 1 else []
    flags = ["--config", str(Path(folder, f"{name}.yaml")), f"--trainer.devices={world_size}", *ring]
    assert main(["test", *flags, "--resume=never", "--run_dir", str(run_dir)]) == 0
    if world_size > 1 and dist.get_rank() > 0:
        return None  # the first process may still be writing
    table = (run_dir / "test" / "tables" / "per_class_objects.csv").read_text()
    return json.loads((run_dir / "test" / "summary.json").read_text()), table


def evaluate_on_this_rank(folder):
    """As a launcher's process: it finds its rank in the environment."""
    rank = dist.get_rank()
    rank_zero_only.rank = rank  # read by Lightning when it was imported, before this process knew
    os.environ |= {"LOCAL_RANK": str(rank), "NODE_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}
    return {name: evaluate(folder, name, dist.get_world_size()) for name in SETS}


@pytest.fixture(scope="module")
def one(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ranks")
    write_trees(folder)
    return folder, {name: evaluate(folder, name, 1) for name in SETS}


def test_each_set_has_what_its_data_allow(one):
    _, of_runs = one
    classes, languages = of_runs["classes"][0], of_runs["languages"][0]
    assert {"zeroshot_acc", "fewshot@5", "probe_acc", "i2t_recall@1", "pair_ece"} <= classes["test"].keys()
    assert classes["test"]["zeroshot_acc"]["count"] == classes["test"]["probe_acc"]["count"] == 13  # of 14 files
    assert {"t2i_recall@1", "pair_prior"} <= languages["quz"].keys()
    assert languages["quz"]["i2t_recall@1"]["count"] == 7  # one of eight pictures has no caption in Quechua
    assert not {"zeroshot_acc", "pair_ece"} & languages["average"].keys()
    for metrics in (classes, languages):
        assert {"zeroshot_acc", "zeroshot_acc@5", "zeroshot_class_acc"} == metrics["objects"].keys()
        for values in (values for of_set in metrics.values() for values in of_set.values()):
            assert values["low"] <= values["value"] <= values["high"]


@pytest.mark.parametrize("world_size", [2, 3])
def test_numbers_do_not_depend_on_the_processes(one, world_size):
    folder, of_one = one
    of_ranks = run_ranks(world_size, evaluate_on_this_rank, str(folder))[0]
    for run, names in SETS.items():
        (expected, table), (found, table_of_ranks) = of_one[run], of_ranks[run]
        assert list(found) == list(expected) == names
        for name, metrics in expected.items():
            for metric in metrics:
                # Shares of few pictures: equal to the bit, or a picture is missing.
                assert found[name][metric] == expected[name][metric], (name, metric)
        assert table_of_ranks == table
