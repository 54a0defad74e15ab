"""What a user of the command line finds after fine-tuning and after a zero-shot test, without writing code."""

import csv
import json

import pytest
import yaml

from siglightning.cli import main

TOWER = {"name": "local:conv", "kwargs": {"width": 8, "depths": [1, 1, 1], "groups": 4}}
ENCODER = {"class_path": "siglightning.models.ImageEncoder", "init_args": {"image_tower": TOWER}}
CONFIG = {
    "model": {"class_path": "siglightning.tasks.FineTuneTask", "init_args": {"network": ENCODER}},
    "data": {
        "class_path": "siglightning.data.PictogramDataModule",
        "init_args": {"global_batch_size": 16, "train_styles": ["noto"]},
    },
    "trainer": {
        "accelerator": "cpu", "max_epochs": 2, "limit_train_batches": 4, "limit_val_batches": 1,
        "limit_test_batches": 1, "log_every_n_steps": 1, "enable_progress_bar": False,
    },
}  # fmt: skip


def files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.fixture
def fit(here, capsys):
    (here / "config.yaml").write_text(yaml.safe_dump(CONFIG))

    def run(*arguments):
        code = main(["fit", "--config", "config.yaml", *arguments])
        out = "".join(capsys.readouterr())
        assert code == 0, out
        return out

    return run


PAGES = ("confusion", "per_class", "ranked", "worst_mistakes")


def test_fine_tuning_leaves_tables_and_pictures(fit, here, capsys):
    out = fit("--run_dir", "full", "--model.init_args.train=full", "--config", "logger/wandb")
    found = files(here / "full")
    sets = ("seen_concepts", "unseen_concepts")
    pages = {f"figures/{kind}_{name}.png" for name in sets for kind in PAGES}
    curves = {
        f"figures/{name}.png" for name in ("classes", "epochs", "stability", "training_curves", "validation_curves")
    }
    assert {"epochs.csv", "model.json", *pages, *curves, *(f"samples/conv/{name}.png" for name in sets)} <= found
    assert sum(name.startswith("samples/conv/seen_concepts/") for name in found) == 12
    assert {name for name in found if name.startswith("figures/")} == pages | curves  # none of contrastive training
    assert "epochs.csv" in out

    epochs, metrics = rows(here / "full" / "epochs.csv"), rows(here / "full" / "metrics.csv")
    assert [row["epoch"] for row in epochs] == ["1", "2"]
    assert all(all(row.values()) for row in epochs)
    norms = [float(row["train/grad_norm"]) for row in metrics[:4]]
    assert float(epochs[0]["grad_norm_mean"]) == pytest.approx(sum(norms) / 4, rel=1e-12)
    assert float(epochs[0]["lr"]) == pytest.approx(float(metrics[3]["train/lr"]), rel=1e-6)  # logged in float32
    accuracies = [float(row["train/acc"]) for row in metrics[:4]]
    assert float(epochs[0]["train_acc"]) == pytest.approx(sum(accuracies) / 4, rel=1e-6)
    assert float(epochs[1]["val_acc"]) == float(metrics[7]["val/acc"])
    log = next((here / "full" / "wandb").glob("offline-run-*/*.wandb")).read_bytes()
    assert all(key in log for key in (b"epoch/train_acc", b"epoch/peak_memory_mib", b"epoch/grad_norm_max"))

    fit("--run_dir", "linear", "--model.init_args.train=linear", "--test_after_fit=false")
    models = [json.loads((here / name / "model.json").read_text()) for name in ("full", "linear")]
    assert models[0]["parameters"] == models[0]["trained"] == models[1]["parameters"] > models[1]["trained"]
    assert main(["compare", "full", "linear"]) == 0
    first, second = rows(here / "compare" / "compare.csv")
    assert int(second["trained"]) == models[1]["trained"]
    best = max(float(row["val/acc"]) for row in metrics if row["val/acc"])
    assert float(first["best val accuracy"]) == pytest.approx(best)
    summary = json.loads((here / "full" / "summary.json").read_text())
    assert float(first["test accuracy: seen_concepts"]) == pytest.approx(summary["seen_concepts"]["acc"]["value"])


def test_a_zero_shot_test_leaves_its_grid(here, capsys):
    """Of a two-tower model as it is built."""
    text = {"name": "local:text_transformer", "kwargs": {"width": 16, "depth": 1, "heads": 2}}
    network = {"image_tower": TOWER, "text_tower": text, "embed_dim": 16, "context_length": 16}
    network = {"class_path": "siglightning.models.TwoTower", "init_args": network}
    model = {"class_path": "siglightning.tasks.ContrastiveTask", "init_args": {"network": network}}
    (here / "config.yaml").write_text(yaml.safe_dump(CONFIG | {"model": model}))
    code = main(["test", "--config", "config.yaml", "--run_dir", "run", "--resume", "never"])
    assert code == 0, capsys.readouterr()
    found = files(here / "run" / "test")
    assert {f"figures/{kind}_seen_concepts.png" for kind in ("confusion", "ranked", "retrieval_grid")} <= found
    assert sum(name.startswith("samples/conv/seen_concepts/") for name in found) == 12
