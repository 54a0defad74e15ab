"""Zero-shot sets, probes and their pages from the command line, on small trees in published layouts."""

import csv
import functools
import json
from pathlib import Path

import pytest
from PIL import Image

from siglightning.cli import main
from siglightning.data import PictogramArchive

ARCHIVE = functools.cache(PictogramArchive.open)
WORDNET = ("n01440764", "n02123045", "n07753592", "n04008634", "n03773504")  # the last two are both called missile
SMALL = """
model:
  class_path: siglightning.tasks.ContrastiveTask
  init_args:
    network:
      class_path: siglightning.models.TwoTower
      init_args:
        image_tower: {name: "local:conv", kwargs: {width: 8, depths: [1, 1], groups: 4}}
        text_tower: {name: "local:text_transformer", kwargs: {width: 16, depth: 1, heads: 2}}
        embed_dim: 16
        context_length: 12
        image_size: 32
        init_bias: -3.0
data:
  class_path: siglightning.data.FolderDataModule
  init_args:
    root: pets
    global_batch_size: 6
    eval_batch_size: 5
    zeroshot_sets:
      real:
        class_path: siglightning.data.ImageNetTestDataModule
        init_args: {name: imagenet_real, root: imagenet, templates: names, eval_batch_size: 4}
      sketch:
        class_path: siglightning.data.ImageNetTestDataModule
        init_args: {name: imagenet_sketch, root: sketch, templates: ["a sketch of {}"], eval_batch_size: 3}
trainer:
  accelerator: cpu
  max_steps: 2
  val_check_interval: 2
  check_val_every_n_epoch: null
  num_sanity_val_steps: 0
  enable_progress_bar: false
  precision: 64-true
"""


def write(path, number):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(ARCHIVE().read_image(number * 40 % 9000).permute(1, 2, 0).numpy()).save(path)


def write_trees(folder):
    for part, count in (("train", 30), ("val", 9), ("test", 14)):
        for number in range(count):
            write(folder / "pets" / part / ["cat", "dog", "owl"][number % 3] / f"{number}.png", number)
    for number in range(1, 12):
        write(folder / "imagenet" / f"ILSVRC2012_val_{number:08d}.JPEG", number)
    for number in range(10):
        write(folder / "sketch" / WORDNET[number % 5] / f"{number}.png", number)
    (folder / "small.yaml").write_text(SMALL)


@pytest.fixture(scope="module")
def trees(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trees")
    write_trees(folder)
    return folder


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_fit_and_test(trees, monkeypatch, capsys):
    monkeypatch.chdir(trees)
    for templates, message in (
        ("{val: names, tset: cifar}", "sets val, real, sketch, test, got those of tset"),
        ("{val: nmaes}", "one of the names names, photo"),
        ("cifra", "one of the names names, photo"),
        ("a photo", "one of the names names, photo"),
        ("['a photo']", "where the class name goes; got 'a photo'"),
    ):
        code = main(["fit", "--config", "small.yaml", f"--model.templates={templates}", "--run_dir", "wrong"])
        assert (code, message in "".join(capsys.readouterr())) == (2, True), templates

    probes = ["--config", "evaluation/probes", "--trainer.callbacks.init_args.shots=[1, 5, 25]"]
    shorter = "--trainer.callbacks.init_args.l2_regs=[0.1, 10]"
    code = main(["fit", "--config", "small.yaml", *probes, shorter, "--run_dir", "run"])
    out = "".join(capsys.readouterr())
    assert code == 0, out
    assert "2 names of 'sketch' stand for several classes (missile, sunglasses)" in out
    assert "No few-shot accuracy for 25 pictures a class: one class has only 10." in out
    validated = [row for row in rows(Path("run/metrics.csv")) if row.get("val/loss")]
    assert {"val/zeroshot_acc", "val/real/zeroshot_acc", "val/sketch/zeroshot_acc@5"} <= validated[0].keys()
    assert "val/fewshot@1" not in validated[0]

    summary = json.loads(Path("run/summary.json").read_text())
    assert summary.keys() == {"test", "real", "sketch"}
    assert {"t2i_recall@1", "zeroshot_class_acc", "fewshot@1", "fewshot@5", "probe_acc"} <= summary["test"].keys()
    assert "fewshot@25" not in summary["test"]
    assert "t2i_recall@1" not in summary["real"]
    assert summary["sketch"]["zeroshot_acc"]["chance"] == pytest.approx(1 / 1000)
    assert (summary["sketch"]["zeroshot_acc"]["count"], summary["test"]["probe_acc"]["count"]) == (10, 14)
    assert summary["real"]["zeroshot_acc"]["count"] <= 11
    for metrics in summary.values():
        for value in metrics.values():
            assert value["low"] <= value["value"] <= value["high"]

    table = rows(Path("run/tables/per_class_test.csv"))
    assert [(row["class"], row["pictures"]) for row in table] == [("cat", "5"), ("dog", "5"), ("owl", "4")]
    right = sum(int(row["right"]) for row in table)
    assert right / 14 == pytest.approx(summary["test"]["zeroshot_acc"]["value"])
    sketched = rows(Path("run/tables/per_class_sketch.csv"))
    assert sum(int(row["pictures"]) for row in sketched) == 10
    assert [row["accuracy"] for row in sketched if row["pictures"] == "0"] == [""] * 995
    figures = {path.name for path in Path("run/figures").glob("*.png")}
    pages = {"retrieval.png", "reliability_test.png", "probes.png", "per_class_test.png", "confusion_test.png"}
    assert pages | {"per_class_real.png", "per_class_sketch.png"} <= figures
    lines = {(row["set"], row["metric"]): row for row in rows(Path("run/summary.csv"))}
    assert lines.keys() == {(name, metric) for name, metrics in summary.items() for metric in metrics}
    for name, metric in (("test", "fewshot@5"), ("test", "probe_acc"), ("test", "pair_ece"), ("real", "zeroshot_acc")):
        expected = {key: "" if value is None else str(value) for key, value in summary[name][metric].items()}
        assert lines[name, metric] == {"set": name, "metric": metric, **expected}


def test_validate_with_other_prompts_and_probes(trees, monkeypatch, capsys):
    """The validation set is what is reported: the penalty is chosen on a fifth of the training pictures."""
    monkeypatch.chdir(trees)
    flags = ["--model.templates={val: cifar}", "--config", "evaluation/probes", "--resume=never", "--run_dir=untrained"]
    shorter = ["--trainer.callbacks.init_args.l2_regs=[0.1]", "--trainer.callbacks.init_args.features=embedding"]
    code = main(["validate", "--config", "small.yaml", *flags, *shorter, "--data.zeroshot_sets=null"])
    out = "".join(capsys.readouterr())
    assert code == 0, out
    assert "val  probe_acc" in out.replace("   ", "  ").replace("   ", "  ")


def test_everything_is_measured_while_training_where_asked_for(trees, monkeypatch, capsys):
    monkeypatch.chdir(trees)
    flags = ["--config", "evaluation/probes", "--trainer.callbacks.init_args.during_fit=true", "--run_dir=during"]
    flags += ["--trainer.callbacks.init_args.shots=[1, 5]", "--trainer.callbacks.init_args.l2_regs=[0.1]"]
    flags += ["--model.calibration_in_fit=true", "--data.zeroshot_sets=null", "--trainer.limit_test_batches=0"]
    code = main(["fit", "--config", "small.yaml", *flags])
    assert code == 0, "".join(capsys.readouterr())
    (validated,) = [row for row in rows(Path("during/metrics.csv")) if row.get("val/loss")]
    names = ("fewshot@1", "fewshot@5", "probe_acc", "pair_ece", "pair_prior", "pair_mean_probability", "zeroshot_acc")
    assert all(0 <= float(validated[f"val/{name}"]) <= 1 for name in names)
    assert float(validated["val/pair_prior"]) == pytest.approx(9 * 3 / 81)  # 9 pictures of 3 captions


def test_a_classifier_has_no_zeroshot_sets(trees, monkeypatch, capsys):
    monkeypatch.chdir(trees)
    network = "{class_path: siglightning.models.ImageEncoder, init_args: {image_tower: {name: 'local:conv'}}}"
    task = ["--model=siglightning.tasks.FineTuneTask", f"--model.network={network}"]
    config = (trees / "small.yaml").read_text().partition("data:\n")
    (trees / "data.yaml").write_text("data:\n" + config[2])
    assert main(["fit", "--config", "data.yaml", *task, "--run_dir", "classifier"]) == 2
    assert "zeroshot_sets` are classified by prompts" in "".join(capsys.readouterr())
