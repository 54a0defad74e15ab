"""The table at the end of a run."""

import csv
import io
import json
import math
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import WandbLogger
from rich.console import Console
from torch.utils.data import DataLoader

from siglightning.callbacks import ClassAccuracy, RetrievalReport, SummaryTable
from siglightning.callbacks.logged_table import csv_text
from siglightning.callbacks.summary import as_csv, as_json, as_markdown, as_plain_text
from siglightning.evaluation import Evaluation, MetricValue, Predictions

EVALUATIONS = {
    "seen": Evaluation(
        "seen",
        {
            "t2i_recall@1": MetricValue(0.25, 0.0004, 0.2, 0.301, 1500),
            "zeroshot_acc": MetricValue(0.5, math.nan, 0.4, 0.6, 20),
        },
    ),
    "a|b": Evaluation("a|b", {"i2t_recall@5": MetricValue(0.0, 0.015, 0.0, 0.0, 330)}),
}

LABELS = torch.tensor([0, 1, 2, 2])


class Task(LightningModule):
    def __init__(self):
        super().__init__()
        self.evaluations = {}

    def test_step(self, batch, batch_idx):
        pass

    def validation_step(self, batch, batch_idx):
        pass

    def on_test_epoch_end(self):
        self.evaluations = EVALUATIONS

    on_validation_epoch_end = on_test_epoch_end


class LateWriter(Callback):
    """Writes after the table's own hook."""

    def on_test_end(self, trainer, pl_module):
        folder = Path(trainer.default_root_dir) / "figures"
        folder.mkdir()
        (folder / "late.png").touch()


@pytest.fixture
def run(tmp_path):
    def start(verb, console):
        trainer = Trainer(
            accelerator="cpu", devices=1, default_root_dir=tmp_path, logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[SummaryTable(console), LateWriter()],
        )  # fmt: skip
        getattr(trainer, verb)(Task(), DataLoader(torch.zeros(2, 1)), verbose=False)
        return console.file.getvalue()

    return start


def test_plain_text_is_aligned_and_complete():
    assert as_plain_text(EVALUATIONS).splitlines() == [
        "set   metric        value  chance   95 % interval      n",
        "seen  t2i_recall@1  0.250  0.0004  0.200 to 0.301  1,500",
        "seen  zeroshot_acc  0.500       -  0.400 to 0.600     20",
        "a|b   i2t_recall@5  0.000   0.015  0.000 to 0.000    330",
    ]


def test_markdown_and_json_hold_the_same():
    lines = as_markdown(EVALUATIONS).splitlines()
    assert lines[1] == "| --- | --- | ---: | ---: | ---: | ---: |"
    assert lines[2] == "| seen | t2i_recall@1 | 0.250 | 0.0004 | 0.200 to 0.301 | 1,500 |"
    assert lines[4].startswith("| a\\|b |")
    content = json.loads(as_json(EVALUATIONS))
    assert content["seen"]["t2i_recall@1"] == {
        "value": 0.25,
        "chance": 0.0004,
        "low": 0.2,
        "high": 0.301,
        "count": 1500,
    }
    assert content["seen"]["zeroshot_acc"]["chance"] is None


def test_csv_holds_every_number_in_full():
    assert list(csv.reader(io.StringIO(as_csv(EVALUATIONS)))) == [
        ["set", "metric", "value", "chance", "low", "high", "count"],
        ["seen", "t2i_recall@1", "0.25", "0.0004", "0.2", "0.301", "1500"],
        ["seen", "zeroshot_acc", "0.5", "", "0.4", "0.6", "20"],
        ["a|b", "i2t_recall@5", "0.0", "0.015", "0.0", "0.0", "330"],
    ]


@pytest.mark.parametrize("verb", ["test", "validate"])
def test_weights_and_biases_gets_every_table(tmp_path, verb):
    """Offline, of which W&B keeps each table as a file of the run: what the CSV files hold, with numbers as numbers."""
    logger = WandbLogger(save_dir=tmp_path, offline=True, project="here")
    quiet = dict.fromkeys(["enable_checkpointing", "enable_progress_bar", "enable_model_summary"], False)
    callbacks = [SummaryTable(), ClassAccuracy(), RetrievalReport()]
    trainer = Trainer(accelerator="cpu", default_root_dir=tmp_path, logger=logger, callbacks=callbacks, **quiet)
    task = Task()
    task.predictions = {"seen": Predictions(list("abcd"), torch.eye(3)[[0, 1, 1, 2]], LABELS, ["cat", "dog", "owl"])}
    getattr(trainer, verb)(task, DataLoader(torch.zeros(2, 1)), verbose=False)
    folder = Path(logger.experiment.dir) / "media" / "table"
    logger.experiment.finish()

    names = sorted(path.relative_to(folder).parts[0].partition("_")[0] for path in folder.rglob("*.json"))
    assert names == sorted([verb, "seen", "retrieval"])

    def logged(key):
        (file,) = folder.glob(f"{key}_*.table.json")
        table = json.loads(file.read_text())
        return table["columns"], table["data"]

    tables = tmp_path / "tables"
    files = {"seen/per_class": tables / "per_class_seen.csv", "retrieval": tables / "retrieval.csv"}
    texts = {verb: as_csv(EVALUATIONS)} | {key: path.read_bytes().decode() for key, path in files.items()}
    assert {key: csv_text(*logged(key)) for key in texts} == texts
    assert logged(verb)[1][1] == ["seen", "zeroshot_acc", 0.5, None, 0.4, 0.6, 20]
    counted = [row[:4] for row in logged("seen/per_class")[1]]
    assert counted == [["cat", 1, 1, 1.0], ["dog", 1, 1, 1.0], ["owl", 2, 1, 0.5]]
    assert logged("retrieval")[0][:3] == ["set", "t2i_recall@1", "t2i_recall@1_low"]
    assert logged("retrieval")[1] == [["seen", 0.25, 0.2, 0.301, 0.0004]]


def test_test_prints_table_and_paths_and_writes_files(run, tmp_path):
    text = run("test", Console(file=io.StringIO(), width=40))
    assert as_plain_text(EVALUATIONS) in text
    assert f"Run directory: {tmp_path}" in text
    assert [line.strip() for line in text.split("Run directory")[1].splitlines()[1:]] == [
        "figures/late.png", "summary.json", "summary.md", "summary.csv",
    ]  # fmt: skip
    assert (tmp_path / "summary.json").read_text() == as_json(EVALUATIONS)
    assert (tmp_path / "summary.md").read_text() == as_markdown(EVALUATIONS)
    assert (tmp_path / "summary.csv").read_bytes() == as_csv(EVALUATIONS).encode()
    names = ["figures", "summary.csv", "summary.json", "summary.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == names


def test_terminal_gets_a_drawn_table_with_every_cell(run):
    text = run("test", Console(file=io.StringIO(), force_terminal=True, width=100, _environ={}))
    assert "│" in text
    for cell in ("seen", "t2i_recall@1", "0.250", "0.0004", "0.200 to 0.301", "1,500"):
        assert cell in text


def test_validate_prints_and_writes_nothing(run, tmp_path):
    text = run("validate", Console(file=io.StringIO()))
    assert as_plain_text(EVALUATIONS) in text
    assert list(tmp_path.iterdir()) == []
