"""W&B, TensorBoard and metrics.csv of one run hold the same numbers at the same steps, also after a resume."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import yaml
from dashboards import (
    csv_points,
    media,
    tensorboard_events,
    tensorboard_points,
    wandb_files,
    wandb_points,
    wandb_records,
    wandb_rows,
    wandb_table,
)
from PIL import Image

from siglightning.cli import main
from siglightning.commands.dashboard.layout import LEFT_OUT, sections_of

pytest.importorskip("tensorboard", reason="the extra `tensorboard` is not installed")

BOTH = {
    "logger": [
        {"class_path": "lightning.pytorch.loggers.WandbLogger", "init_args": {"project": "here", "offline": True}},
        {
            "class_path": "lightning.pytorch.loggers.TensorBoardLogger",
            "init_args": {"save_dir": ".", "default_hp_metric": False},
        },
    ]
}
MONITOR = {
    "class_path": "siglightning.callbacks.ThroughputMonitor",
    "init_args": {"peak_tflops": 1.0},
}  # of no CPU known
QUIET = {
    "callbacks": [MONITOR],
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "num_sanity_val_steps": 0,
    "log_every_n_steps": 1,
}
CONV = {"name": "local:conv", "kwargs": {"width": 8, "depths": [1, 1], "groups": 4, "patch": 8}}
TEXT = {"name": "local:text_transformer", "kwargs": {"width": 16, "depth": 1, "heads": 2}}
TOWERS = {
    "class_path": "siglightning.models.TwoTower",
    "init_args": {"image_tower": CONV, "text_tower": TEXT, "embed_dim": 16, "image_size": 32, "context_length": 12},
}
ENCODER = {"class_path": "siglightning.models.ImageEncoder", "init_args": {"image_tower": CONV, "image_size": 32}}
COUNTS = {"num_samples": 32, "num_val_samples": 16, "num_test_samples": 16}


def config(task, network, data, **init_args):
    return {
        "model": {"class_path": f"siglightning.tasks.{task}", "init_args": {"network": network, **init_args}},
        "data": {
            "class_path": f"siglightning.data.{data}",
            "init_args": {"global_batch_size": 8, "eval_batch_size": 8, **COUNTS},
        },
        "trainer": {**QUIET, **BOTH, "max_steps": 6, "val_check_interval": 2},
    }


CONFIGS = {
    "contrastive": config("ContrastiveTask", TOWERS, "SyntheticDataModule", calibration_in_fit=True),
    "finetune": config("FineTuneTask", ENCODER, "SyntheticDataModule", train="full"),
    "multilabel": config("FineTuneTask", ENCODER, "CollageDataModule", train="full", loss="bce"),
}
LABELS = config("MultiLabelTask", ENCODER, "CollageDataModule", temperature="fit")
CRASH = {"trainer": {"callbacks": [MONITOR, {"class_path": "cli_examples.Crash", "init_args": {"step": 5}}]}}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Each task's run, of six steps, with a validation and a checkpoint every two, killed in the sixth and resumed."""
    folder = tmp_path_factory.mktemp("dashboards")
    found = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.delenv("WANDB_DATA_DIR", raising=False)
        for name, content in CONFIGS.items():
            (folder / f"{name}.yaml").write_text(yaml.safe_dump(content))
            begin = ["fit", "--config", f"{name}.yaml", "--trust_imports", "cli_examples", "--run_dir", name]
            assert main([*begin, "--config", json.dumps(CRASH)]) == 1
            assert main(begin) == 0
            found[name] = folder / name
        (folder / "labels.yaml").write_text(yaml.safe_dump(LABELS))
        assert main(["test", "--config", "labels.yaml", "--run_dir", "multilabel"]) == 0
    return found


@pytest.mark.parametrize("task", CONFIGS)
def test_three_records_hold_the_same_numbers(runs, task):
    wandb, board, table = wandb_points(runs[task]), tensorboard_points(runs[task]), csv_points(runs[task])
    assert wandb == table
    assert board.keys() == table.keys()
    for key, value in table.items():
        assert np.float32(value) == np.float32(board[key]), key


def test_an_evaluation_by_itself_has_a_record_of_its_own(runs):
    """The labels of the classifier, with probabilities fitted on the validation set: nothing is trained."""
    folder = runs["multilabel"] / "test"
    found = csv_points(folder)
    assert wandb_points(folder) == found
    assert {key: np.float32(value) for key, value in found.items()} == tensorboard_points(folder)
    assert ("test/test/nll", 0) in found
    assert not any(name == "examples_seen" for name, _ in found)
    panels = [panel for of_section in sections_of("multilabel").values() for panel in of_section]
    keys = {name for name, _ in found} | media(folder).keys()
    assert {"test", "test/predictions"} <= keys
    assert {key for key in keys if not any(panel.shows(key) for panel in panels)} <= LEFT_OUT.keys()
    assert (folder / "wandb_id.txt").read_text() != (runs["multilabel"] / "wandb_id.txt").read_text()


def test_steps_are_the_axis_and_examples_stand_beside_every_row(runs):
    run = runs["contrastive"]
    defined = {metric.name or metric.glob_name: metric for metric in wandb_records(run, "metric")}
    assert defined.keys() == {"global_step", "examples_seen", "*"}
    assert defined["*"].step_metric == defined["examples_seen"].step_metric == "global_step"
    assert defined["*"].options.step_sync
    rows = wandb_rows(run)
    assert all(row["examples_seen"] == 8 * min(row["global_step"] + 1, 6) for row in rows)  # tests follow the last step
    assert {row["global_step"] for row in rows} == set(range(7))
    assert {name for row in rows if row["global_step"] == 6 for name in row} & {"test/test/pair_ece", "test"}


def test_a_resumed_run_is_one_run_with_one_axis(runs):
    for run in runs.values():
        identity = (run / "wandb_id.txt").read_text().strip()
        assert [record.run_id for record in wandb_records(run, "run")] == [identity] * 2
        assert all(record.resume for record in wandb_records(run, "run")), "the server would replace the first start"
        first, second = ([row["global_step"] for row in wandb_rows(run, [file])] for file in wandb_files(run))
        assert (min(first), max(first), min(second), max(second)) == (0, 3, 4, 6)  # it had come to 4 when it was killed
        steps = first + second
        assert steps == sorted(steps)


def test_histograms_are_exact_in_all_three(runs):
    run = runs["contrastive"]
    events = tensorboard_events(run)
    for name, step in (("val", 5), ("test", 6)):
        with (run / "tables" / f"logits_{name}.csv").open() as file:
            table = list(csv.DictReader(file))
        edges = [float(row["low"]) for row in table] + [float(table[-1]["high"])]
        for kind, pairs in (("positive", 16), ("negative", 16 * 15)):
            counts = [int(row[f"{kind}s"]) for row in table]
            key = f"{name}/{kind}_logits"
            (logged,) = [row for row in wandb_rows(run) if f"{key}._type" in row and row["global_step"] == step]
            assert (logged[f"{key}.values"], logged[f"{key}.bins"]) == (counts, edges)
            (event,) = [event for event in events.Histograms(key) if event.step == step]
            assert event.histogram_value.bucket == counts
            assert event.histogram_value.bucket_limit == edges[1:]
            assert sum(counts) == pairs
    validations = [row["global_step"] for row in wandb_rows(run) if "val/positive_logits._type" in row]
    assert validations == [1, 3, 5]


def test_pictures_and_tables_and_the_machine_are_on_the_record(runs):
    for task, run in runs.items():
        kinds, rows = media(run), wandb_rows(run)
        (row,) = [row for row in rows if "test/predictions._type" in row]
        columns, data = wandb_table(run, row, "test/predictions")
        assert row["global_step"] == 6
        assert len({line[1] for line in data}) == len(data) > 5
        (artifact,) = [each for each in wandb_records(run, "artifact") if "testpredictions" in each.name]
        pictures = [each for each in artifact.manifest.contents if each.path.endswith(".png")]
        assert 0 < len(pictures) <= len(data)  # equal ones are one file
        assert all(Path(each.local_path).is_relative_to(run / "wandb") for each in pictures)
        assert all(Image.open(each.local_path).size == (32, 32) for each in pictures)
        if task == "multilabel":
            assert columns == ["picture", "id", "labels", "given out", "best label", "probability"]
        else:
            assert columns == ["picture", "id", "label", "prediction", "probability", "right"]
            assert all(line[5] == (line[2] == line[3]) for line in data)
        assert {"test", "test/per_class", "test/predictions"} <= kinds.keys()
        items = {item.key for record in wandb_records(run, "stats") for item in record.item}
        assert {"memory_percent", "proc.memory.rssMB"} <= items
    assert media(runs["contrastive"])["val/hardest_negatives"] == "images/separated"


def logged_keys(run):
    names = {name for name, _ in csv_points(run)}
    assert names == {name for name, _ in wandb_points(run)}
    return names | media(run).keys()


@pytest.mark.parametrize("task", CONFIGS)
def test_a_workspace_shows_what_is_logged_and_names_nothing_else(runs, task, tmp_path):
    keys, sections = logged_keys(runs[task]), sections_of(task)
    panels = [panel for of_section in sections.values() for panel in of_section]
    for panel in panels:
        assert set(panel.keys) <= keys, panel
        assert any(panel.shows(key) for key in keys), panel
        assert panel.x in ("global_step", "examples_seen")
    assert {key for key in keys if not any(panel.shows(key) for panel in panels)} <= LEFT_OUT.keys()

    path = tmp_path / "workspace.json"
    assert main(["dashboard", "--task", task, "--out", str(path)]) == 0
    written = json.loads(path.read_text())["section"]
    assert written["settings"]["xAxis"] == "global_step"
    found = written["panelBankConfig"]["sections"]
    assert [section["name"] for section in found] == list(sections)
    for panel, of_file in zip(panels, [panel for section in found for panel in section["panels"]], strict=True):
        settings = of_file["config"]
        if panel.kind == "curves":
            assert settings["xAxis"] == panel.x
            assert (settings.get("metrics", []), settings.get("metricRegex", "")) == (list(panel.keys), panel.pattern)
        elif panel.kind == "pictures":
            assert settings["mediaKeys"] == list(panel.keys)
        else:
            assert json.dumps(panel.keys[0]) in json.dumps(settings)
