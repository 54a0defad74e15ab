"""Multi-label inference from the command line: a fine-tuned classifier, and prompts, on real pictures."""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from siglightning.cli import main
from siglightning.data import PictogramArchive
from siglightning.models import ImageEncoder, TowerConfig

TOWER = {"width": 8, "depths": [1, 1], "groups": 4, "patch": 8}
CONFIG = f"""
model:
  class_path: CLASS
  init_args:
    network:
      class_path: siglightning.models.ImageEncoder
      init_args:
        image_tower: {{name: "local:conv", kwargs: {json.dumps(TOWER)}}}
        image_size: 32
data:
  class_path: siglightning.data.FolderDataModule
  init_args: {{root: tree, global_batch_size: 12, eval_batch_size: 16}}
trainer: {{max_steps: 6, log_every_n_steps: 1, enable_progress_bar: false, num_sanity_val_steps: 0, accelerator: cpu}}
"""
PROMPTED = f"""
model:
  class_path: siglightning.tasks.MultiLabelTask
  init_args:
    network:
      class_path: siglightning.models.TwoTower
      init_args:
        image_tower: {{name: "local:conv", kwargs: {json.dumps(TOWER)}}}
        text_tower: {{name: "local:text_transformer", kwargs: {{width: 16, depth: 1, heads: 2}}}}
        embed_dim: 16
        image_size: 32
data: {{class_path: siglightning.data.PicturesDataModule, init_args: {{root: loose}}}}
trainer: {{enable_progress_bar: false, accelerator: cpu}}
"""
CLASSES = ("animals", "flags", "food")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with pictures and a classifier that was fine-tuned on them by the command line."""
    here = tmp_path_factory.mktemp("multilabel")
    archive = PictogramArchive.open()
    category = archive.concepts["category"].to_pylist()
    groups = {name: [] for name in CLASSES}
    for row, concept in enumerate(archive.pictures["concept"].to_pylist()):
        for name in CLASSES:
            if name in category[concept].lower():
                groups[name].append(row)
    for name, rows in groups.items():
        for part, start, stop in (("train", 0, 24), ("val", 24, 40), ("test", 40, 56)):
            for row in rows[start:stop]:
                save(archive, row, here / "tree" / part / name.capitalize() / f"{row}.png")
        for row in rows[56:59]:
            save(archive, row, here / "loose" / "deeper" / f'{row}, "{name}".png')
    (here / "empty").mkdir()
    (here / "fit.yaml").write_text(CONFIG.replace("CLASS", "siglightning.tasks.FineTuneTask"))
    (here / "labels.yaml").write_text(CONFIG.replace("CLASS", "siglightning.tasks.MultiLabelTask"))
    (here / "prompts.yaml").write_text(PROMPTED)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(here)
        more = ["--model.init_args.train=full", "--trainer.max_steps=60", "--test_after_fit=false"]
        assert main(["fit", "--config", "fit.yaml", "--run_dir", "run", *more]) == 0
    return here


def save(archive, row, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(archive.read_image(row).permute(1, 2, 0).numpy()).save(path)


@pytest.fixture
def call(trained, monkeypatch, capsys):
    """Call a command where the pictures are; gives the exit code and all that is printed."""
    monkeypatch.chdir(trained)

    def run(command, config, *arguments):
        code = main([command, "--config", config, *arguments])
        return code, "".join(capsys.readouterr())

    return run


FITTED = ["--run_dir=run", "--model.temperature=fit", "--model.per_class_bias=true", "--model.thresholds.kind=best_f1"]


def logits_by_hand(trained, pictures):
    """The classifier of the checkpoint on picture files, without our task, data module or command line."""
    path = next((trained / "run" / "checkpoints").glob("best-*.ckpt"))
    state = torch.load(path, weights_only=True)["state_dict"]
    network = ImageEncoder(TowerConfig("local:conv", kwargs=TOWER), image_size=32).eval()
    network.load_state_dict({k.removeprefix("network."): v for k, v in state.items() if k.startswith("network.")})
    from siglightning.data.images import decode
    from siglightning.data.transforms import resize

    images = resize([decode(path.read_bytes()) for path in pictures], 32)
    with torch.no_grad():
        return network.encode_features(images) @ state["head.weight"].T + state["head.bias"]


def test_a_fit_is_reported_before_and_after_and_serves_pictures_without_labels(call, trained):
    code, out = call("test", "labels.yaml", *FITTED)
    assert code == 0, out
    assert "Fitted on the validation set: sigmoid(" in out
    folder = trained / "run" / "test"
    summary = json.loads((folder / "summary.json").read_text())
    saved = json.loads((folder / "calibration.json").read_text())
    names = list(summary)
    assert names[:2] == ["test, softmax", "test, sigmoid"]
    assert set(summary["test, sigmoid"]) == {
        *("nll", "brier", "ece", "ece_equal_mass", "mAP", "macro_f1", "micro_f1", "coverage_error")
    }
    assert (folder / "figures" / "reliability_test.png").is_file()
    assert saved["class_names"] == ["Animals", "Flags", "Food"]

    # The plain sigmoid's NLL by hand, over (picture, class) pairs.
    files = sorted((trained / "tree" / "test").rglob("*.png"))
    truths = torch.tensor([[name == file.parent.name for name in saved["class_names"]] for file in files]).float()
    nll = torch.nn.functional.binary_cross_entropy_with_logits(logits_by_hand(trained, files), truths).item()
    assert summary["test, sigmoid"]["nll"]["value"] == pytest.approx(nll, rel=1e-4)  # resizing on two paths
    with (folder / "metrics.csv").open() as file:
        assert float(list(csv.DictReader(file))[-1]["test/test/nll"]) == pytest.approx(
            summary[names[-1]]["nll"]["value"]
        )

    predicted = ["--data=PicturesDataModule", "--data.root=loose"]
    file = str(folder / "calibration.json")
    code, out = call("predict", "labels.yaml", "--run_dir=run", *predicted, f"--model.calibration_file={file}")
    assert code == 0, out
    rows = pq.read_table(trained / "run" / "predict" / "pictures.parquet").to_pylist()
    files = sorted((trained / "loose").rglob("*.png"))
    assert list(dict.fromkeys(row["id"] for row in rows)) == [f"deeper/{file.name}" for file in files]
    bias = torch.tensor(saved["bias"] or [0.0] * 3, dtype=torch.float64)
    scores = (logits_by_hand(trained, files).double() / saved["temperature"] + bias).sigmoid()
    for file, values in zip(files, scores.tolist(), strict=True):
        mine = [row for row in rows if row["id"] == f"deeper/{file.name}"]
        assert [row["rank"] for row in mine] == [1, 2, 3]
        assert [row["score"] for row in mine] == pytest.approx(sorted(values, reverse=True), rel=1e-4)
        for row in mine:
            column = saved["class_names"].index(row["label"])
            assert row["score"] == pytest.approx(values[column], rel=1e-4)
            assert row["passed"] == (row["score"] >= saved["thresholds"][column])
    assert len(list((trained / "run" / "predict" / "cards" / "pictures").glob("*.png"))) == 9


def test_a_classifiers_answers_are_written_one_row_a_picture(call, trained):
    (checkpoint,) = (trained / "run" / "checkpoints").glob("best-*.ckpt")
    code, out = call("predict", "fit.yaml", "--run_dir=logits", f"--ckpt_path={checkpoint}")
    assert code == 0, out
    table = pq.read_table(trained / "logits" / "predict" / "test.parquet").to_pydict()
    expected = logits_by_hand(trained, sorted((trained / "tree" / "test").rglob("*.png")))
    assert list(table) == ["id", "prediction", "probability", "label", "logits"]
    torch.testing.assert_close(torch.tensor(table["logits"]), expected, rtol=1e-4, atol=1e-5)  # batches of another size
    names = json.loads((trained / "logits" / "predict" / "class_names.json").read_text())
    best, columns = expected.softmax(1).max(1)
    assert table["probability"] == pytest.approx(best.tolist(), rel=1e-4)
    assert table["prediction"] == [names[column] for column in columns.tolist()]
    assert table["label"] == [Path(key).parent.name for key in table["id"]]


def test_validation_reports_a_fixed_temperature(call):
    code, out = call("validate", "labels.yaml", "--run_dir=run", "--model.temperature=2.5")
    assert code == 0, out
    assert "val, sigmoid(z / 2.5)" in out
    assert "coverage_error" in out


def test_prompts_on_the_command_line_name_the_labels(call, trained):
    prompts = '["a cat", "Flagge, \\"quer\\"", "食べ物"]'
    writer = ["--trainer.callbacks+=PredictionWriter", "--trainer.callbacks.format=csv"]
    more = ["--model.thresholds.kind=top_k", "--model.thresholds.k=1", '--model.templates=["a photo of {}."]']
    code, out = call(
        *("predict", "prompts.yaml", "--resume=never", "--run_dir=asked", f"--model.prompts={prompts}", *writer, *more)
    )
    assert code == 0, out
    with (trained / "asked" / "predict" / "pictures.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 9 * 3
    assert {row["label"] for row in rows} == set(json.loads(prompts))
    assert [row["passed"] for row in rows] == ["true", "false", "false"] * 9


def test_pictures_of_any_kind_are_predicted_once_and_damaged_ones_not_at_all(call, trained):
    """The data module puts the next picture in the place of one that it cannot read."""
    archive, odd = PictogramArchive.open(), trained / "odd"
    for number, mode in enumerate(("L", "RGBA", "CMYK", "P", "1", "LA")):
        picture = Image.fromarray(archive.read_image(number).permute(1, 2, 0).numpy())
        odd.mkdir(exist_ok=True)
        picture.convert(mode).save(odd / f"{number}.{'jpg' if mode == 'CMYK' else 'png'}")
    for name in ("0.5.png", "5.5.png"):
        (odd / name).write_bytes((odd / "1.png").read_bytes()[:300])
    arguments = ["--resume=never", "--model.prompts=[a, b]", "--data.root=odd"]
    for size in (1, 64):  # alone in a batch, too
        place = trained / f"odd_{size}"
        code, out = call(
            *("predict", "prompts.yaml", *arguments, f"--data.eval_batch_size={size}", f"--run_dir={place}")
        )
        assert code == 0, out
        assert "2 pictures could not be read" in out
        rows = pq.read_table(place / "predict" / "pictures.parquet").to_pylist()
        assert [row["id"] for row in rows if row["rank"] == 1] == [
            *("0.png", "1.png", "2.jpg", "3.png", "4.png", "5.png")
        ]
        cards = sorted((place / "predict" / "cards" / "pictures").glob("*.png"))
        assert [card.name for card in cards] == [f"000{number}_{number}.png" for number in range(6)]


MISTAKES = {
    "zero": (["validate", "labels.yaml", "--run_dir=run", "--model.temperature=0"], "must be a number above 0, got 0"),
    "fit": (["fit", "labels.yaml", "--run_dir=other"], "trains nothing"),
    "fitted set": (["validate", "labels.yaml", *FITTED], "other pictures than the validation set"),
    "no test set": (
        ["test", "labels.yaml", *FITTED, "--data.root=tree/train"],
        "'validation' is the validation set, which is fitted. Give the data a test set of its own",
    ),
    "no text tower": (["predict", "labels.yaml", "--run_dir=run", "--model.prompts=[a]"], "Prompts need a text tower"),
    "no labels": (
        ["predict", "labels.yaml", *FITTED, "--data=PicturesDataModule", "--data.root=loose"],
        "needs label in every batch",
    ),
    "biases": (["test", "labels.yaml", "--run_dir=run", "--model.per_class_bias=true"], "fitted together with T"),
    "no pictures": (
        ["predict", "prompts.yaml", "--resume=never", "--model.prompts=[a]", "--data.root=empty"],
        "found none",
    ),
    "no folder": (
        ["predict", "prompts.yaml", "--resume=never", "--model.prompts=[a]", "--data.root=x"],
        "does not exist",
    ),
    "no file": (["test", "labels.yaml", "--run_dir=run", "--model.calibration_file=x.json"], "calibration.json that"),
    "prompts": (
        [
            "test",
            "prompts.yaml",
            "--resume=never",
            "--model.prompts=[a]",
            "--data=FolderDataModule",
            "--data.root=tree",
        ],
        "prompts for the 3 classes of the data",
    ),
    "too many": (["test", "labels.yaml", "--run_dir=run", "--model.thresholds={kind: top_k, k: 9}"], "9 of 3 labels"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_mistakes_are_told_in_one_line(name, call, trained):
    arguments, expected = MISTAKES[name]
    code, out = call(*arguments)
    assert code == 2, out
    errors = [line for line in out.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, out
    assert expected in errors[0]
