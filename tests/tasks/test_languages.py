"""Retrieval in the languages of Crossmodal-3600: a row for each, their mean, and what is left on disk."""

import csv
import sys
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Trainer

from siglightning.callbacks import ReliabilityFigures, RetrievalReport
from siglightning.data import Crossmodal3600DataModule
from siglightning.models import TowerConfig, TwoTower
from siglightning.tasks import ContrastiveTask

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from test_crossmodal3600 import write_xm3600

LANGUAGES = ["th", "en", "quz", "de"]


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    folder = tmp_path_factory.mktemp("languages")
    torch.manual_seed(0)
    image = TowerConfig("local:conv", kwargs={"width": 8, "depths": [1, 1], "groups": 4})
    text = TowerConfig("local:text_transformer", kwargs={"width": 16, "depth": 1, "heads": 2})
    task = ContrastiveTask(TwoTower(image, text, embed_dim=16, context_length=12, image_size=32, init_bias=-4.0))
    root = write_xm3600(tmp_path_factory.mktemp("xm3600"))
    data = Crossmodal3600DataModule(str(root), LANGUAGES, global_batch_size=4)
    options = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = Trainer(
        accelerator="cpu",
        default_root_dir=folder,
        enable_model_summary=False,
        callbacks=[RetrievalReport(), ReliabilityFigures()],
        **options,
    )
    logged = {}
    for metrics in trainer.test(task, data, verbose=False):
        logged |= metrics
    return task, logged, folder


def test_average_is_the_mean_over_the_languages(tested):
    task, logged, _ = tested
    assert list(task.evaluations) == [*LANGUAGES, "average"]
    for name in ("t2i_recall@1", "i2t_recall@1", "t2i_mean_rank"):
        values = [task.evaluations[language].metrics[name].value for language in LANGUAGES]
        average = task.evaluations["average"].metrics[name]
        assert average.value == pytest.approx(sum(values) / 4, rel=1e-12)
        assert logged[f"test/average/{name}"] == pytest.approx(average.value)
        assert average.low <= average.value <= average.high
    # nobody described one of the eight pictures in Quechua, and English has three captions instead of two
    counts = {language: task.evaluations[language].metrics["t2i_recall@1"].count for language in LANGUAGES}
    assert (counts["quz"], counts["en"], counts["de"]) == (14, 24, 16)


def test_the_table_has_a_row_a_language_and_the_average(tested):
    task, _, folder = tested
    with (folder / "tables" / "retrieval.csv").open(newline="") as file:
        rows = {row["set"]: row for row in csv.DictReader(file)}
    assert list(rows) == list(task.evaluations)
    for name, row in rows.items():
        metric = task.evaluations[name].metrics["t2i_recall@1"]
        found = [float(row[f"t2i_recall@1{end}"]) for end in ("", "_low", "_high", "_chance")]
        assert found == [metric.value, metric.low, metric.high, metric.chance]
    assert float(rows["de"]["pair_prior"]) == pytest.approx(1 / 8)
    assert rows["average"]["pair_ece"] == ""


def test_each_language_has_its_reliability_and_all_share_a_page(tested):
    task, _, folder = tested
    assert set(task.reliability) == set(LANGUAGES)
    assert task.reliability["th"]["equal bins"].counts.sum() == 8 * 16
    figures = {path.name for path in (folder / "figures").iterdir()}
    assert figures == {"retrieval.png", *(f"reliability_{language}.png" for language in LANGUAGES)}
