"""Stored features: training on them is training with the live tower, and nothing else passes for them."""

import json
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from siglightning.batch import InputSpec
from siglightning.cli import main
from siglightning.data import EmbeddingDataModule, PictogramArchive
from siglightning.data.feature_store import Shard, write_shard
from siglightning.models import TwoTower
from siglightning.models.towers import TowerConfig

NETWORK = {
    "image_tower": {"name": "local:conv", "kwargs": {"width": 8, "depths": [1, 1]}},
    "text_tower": {"name": "local:text_transformer", "kwargs": {"width": 16, "depth": 1, "heads": 2}},
    "embed_dim": 16,
    "image_size": 32,
    "context_length": 12,
    "freeze_image": True,
}
DATA = {
    "class_path": "FolderDataModule",
    "init_args": {
        "root": "pictures",
        "global_batch_size": 12,
        "templates": ["a photo of a {}.", "{}!"],
        "augmentation": {"crop": 0.3, "rotation": 5, "flip": 0.5, "hue": 0.1},
    },
}
STORED = {"class_path": "EmbeddingDataModule", "init_args": {"root": "features", "global_batch_size": 12}}


@pytest.fixture
def place(tmp_path, monkeypatch):
    """Forty real pictures of two classes, and us beside them; 36 train, three steps an epoch."""
    archive = PictogramArchive.open()
    for number in range(40):
        folder = tmp_path / "pictures" / ("cats", "dogs")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        pixels = archive.read_image(number * 30).permute(1, 2, 0).numpy()
        Image.fromarray(pixels).save(folder / f"{number:02d}.png")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def build():
    towers = {name: TowerConfig(**NETWORK[name]) for name in ("image_tower", "text_tower")}
    return TwoTower(**NETWORK | towers)


def write_config(name, data, **network):
    config = {
        "model": {
            "class_path": "siglightning.tasks.ContrastiveTask",
            "init_args": {"network": {"class_path": "TwoTower", "init_args": NETWORK | network}},
        },
        "data": data,
        "trainer": {"max_steps": 9, "accelerator": "cpu", "enable_progress_bar": False, "log_every_n_steps": 1},
    }
    with open(name, "w") as file:
        json.dump(config, file)  # which is YAML, too
    return name


def run(command, config, run_dir, *options):
    return main([command, "--config", config, "--run_dir", run_dir, *options])


def final_weights(run_dir):
    (path,) = (p for p in run_dir.glob("checkpoints/*.ckpt") if "9" in p.stem)
    return torch.load(path, weights_only=True)["state_dict"]


@pytest.mark.parametrize("both", [False, True], ids=["image tower", "both towers"])
def test_training_on_stored_features_is_training_with_the_live_tower(place, both, capsys):
    live = write_config("live.json", DATA, freeze_text=both)
    stored = write_config("stored.json", STORED, freeze_text=both)
    assert run("fit", live, "live") == 0, capsys.readouterr()
    assert run("embed", live, "features", "--views", "3", "--shard_size", "10") == 0, capsys.readouterr()
    assert run("fit", stored, "stored") == 0, capsys.readouterr()
    expected, got = final_weights(place / "live"), final_weights(place / "stored")
    start = build().state_dict()
    assert any(not torch.equal(expected[f"network.{name}"], start[name]) for name in start)
    for name, value in expected.items():
        # The same arithmetic on other batches: a convolution may round otherwise for another number of pictures.
        torch.testing.assert_close(got[name], value, rtol=0, atol=1e-6, msg=name)
    lives, storeds = (json.loads((place / name / "summary.json").read_text()) for name in ("live", "stored"))
    for name, value in lives["validation"].items():
        assert storeds["validation"][name] == pytest.approx(value, abs=1e-6), name


def test_a_view_is_an_epoch(place):
    """Pictures and captions of view v are those of epoch v; one view more would be the first one again."""
    config = write_config("live.json", DATA)
    assert run("embed", config, "features", "--views", "2", "--shard_size", "7") == 0
    index = json.loads((place / "features" / "features.json").read_text())
    assert index["parts"]["train"] == {"count": 36, "shard_size": 7, "views": 2, "image_views": 2}
    captions = []
    for view in range(2):
        tables = [
            pa.ipc.open_file(path).read_all()
            for path in sorted((place / "features" / "train" / f"view-{view:05d}").iterdir())
        ]
        assert [len(table) for table in tables] == [7, 7, 7, 7, 7, 1]
        captions.append([row for table in tables for row in table["captions"].to_pylist()])
        assert tables[0]["image_embed"].type.list_size == build().image_tower.width
    assert captions[0] != captions[1]
    assert {caption for (caption,) in captions[0]} == {"a photo of a cats.", "a photo of a dogs.", "cats!", "dogs!"}


def snapshot(folder):
    return {path.relative_to(folder): (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*.arrow")}


def contents(files):
    return {path: content for path, (content, _) in files.items()}


def test_embedding_goes_on_where_it_was_stopped(place, capsys):
    config = write_config("live.json", DATA)
    options = ("--views", "2", "--shard_size", "10")
    assert run("embed", config, "features", *options) == 0
    whole = snapshot(place / "features")
    lost = [path for number, path in enumerate(sorted(whole)) if number % 3 == 0]
    for path in lost:
        (place / "features" / path).unlink()
    index = place / "features" / "features.json"
    index.write_text(index.read_text().replace('"complete": true', '"complete": false'))
    stored = write_config("stored.json", STORED)
    assert run("fit", stored, "refused") == 2
    assert "features is not complete. Run `siglightning embed`" in capsys.readouterr().err
    assert run("embed", config, "features", *options) == 0
    again = snapshot(place / "features")
    assert contents(again) == contents(whole)
    assert [path for path in sorted(whole) if again[path][1] != whole[path][1]] == lost
    assert '"complete": true' in index.read_text()


def test_two_processes_store_the_bytes_of_one(place):
    config = write_config("live.json", DATA)
    assert run("embed", config, "one", "--shard_size", "10") == 0
    command = [sys.executable, "-m", "siglightning", "embed", "--config", config, "--run_dir", "two"]
    options = ["--shard_size", "10", "--trainer.devices", "2", "--trainer.strategy", "ring_ddp"]
    subprocess.run([*command, *options], check=True, capture_output=True)
    one, two = (snapshot(place / name) for name in ("one", "two"))
    assert len(one) == 5
    assert {path: content for path, (content, _) in one.items()} == {
        path: content for path, (content, _) in two.items()
    }
    assert (place / "one/features.json").read_text() == (place / "two/features.json").read_text()


@pytest.mark.parametrize(
    ("network", "message"),
    [
        ({"image_size": 40}, "Expected features of the model's image tower (key"),
        (
            {"image_tower": {"name": "local:conv", "kwargs": {"width": 16, "depths": [1, 1]}}},
            "its weights or its input",
        ),
        ({"freeze_image": False}, "would be stale after one step. Set the network's `freeze_image: true`"),
        ({"freeze_text": True, "context_length": 11}, "Expected features of the model's text tower (key"),
        ({"freeze_text": True, "canonicalize": True}, "Expected features of the model's text tower (key"),
    ],
)
def test_features_of_another_tower_are_refused(place, capsys, network, message):
    assert run("embed", write_config("live.json", DATA, freeze_text=True), "features") == 0
    assert run("fit", write_config("stored.json", STORED, **network), "run") == 2
    assert message in capsys.readouterr().err


def test_other_weights_are_another_tower(place, capsys):
    config = write_config("live.json", DATA)
    assert run("embed", config, "features") == 0
    assert run("fit", write_config("stored.json", STORED), "run", "--seed_everything", "1") == 2
    assert "Expected features of the model's image tower" in capsys.readouterr().err
    assert run("embed", config, "features", "--seed_everything", "1") == 2
    assert "holds features with other keys. Choose another --run_dir" in capsys.readouterr().err


def test_other_captions_of_evaluation_are_other_data(place, capsys):
    data = {
        "class_path": "PictogramDataModule",
        "init_args": {"train_styles": ["fluent_flat"], "global_batch_size": 12},
    }
    config = write_config("drawings.json", data)
    assert run("embed", config, "features") == 0
    assert run("embed", config, "features", "--data.init_args.eval_captions", "description") == 2
    assert "holds features with other data. Choose another --run_dir" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--trainer.limit_predict_batches", "2"], "leave out limit_predict_batches and fast_dev_run"),
        (
            ["--data.noise", "{corrupt: [text], probability: 0.5}"],
            "only features of captions keep it",
        ),
        (["--views", "0"], "views and shard_size must be at least 1, got 0 and 4096"),
        (["--texts", "true"], "set the network's `freeze_text: true` to lock it"),
        (["--ckpt_path", "nothing.ckpt"], "which does not exist"),
        (["--model.network.init_args.freeze_image", "false"], "set the network's `freeze_image: true` to lock it"),
    ],
)
def test_what_cannot_be_embedded_is_said_and_leaves_nothing(place, capsys, options, message):
    assert run("embed", write_config("live.json", DATA), "features", *options) == 2
    assert message in capsys.readouterr().err
    assert not (place / "features").exists()


def test_a_run_directory_is_not_written_into(place, capsys):
    (place / "run").mkdir()
    (place / "run" / "config.yaml").write_text("a: 1")
    assert run("embed", write_config("live.json", DATA), "run") == 2
    assert "which holds something else. Choose another --run_dir." in capsys.readouterr().err


def test_a_checkpoint_is_evaluated_on_features_of_its_own_tower(place, capsys):
    """Weights come after the data are set up: the features must be those of the weights that are evaluated."""
    live, stored = write_config("live.json", DATA), write_config("stored.json", STORED)
    assert run("fit", live, "run", "--seed_everything", "5") == 0
    (path,) = (str(p) for p in (place / "run").glob("checkpoints/*.ckpt") if "9" in p.stem)
    weights = ("--ckpt_path", path)
    assert run("embed", live, "features") == 0
    assert run("test", stored, "other", *weights) == 2
    assert "Expected features of the model's image tower" in capsys.readouterr().err
    (place / "features").rename(place / "others")
    assert run("embed", live, "features", *weights) == 0
    assert run("test", stored, "stored", *weights) == 0
    assert run("test", live, "live", *weights) == 0
    lives, storeds = (json.loads(next((place / name).rglob("summary.json")).read_text()) for name in ("live", "stored"))
    for name, value in lives["validation"].items():
        assert storeds["validation"][name]["value"] == pytest.approx(value["value"], abs=1e-6), name


def test_other_draws_are_other_data_and_no_batch_is_asked_for(place, capsys):
    config = write_config("live.json", DATA)
    assert run("embed", config, "features", "--data.init_args.global_batch_size", "1000") == 0
    for options in (["--data.init_args.seed", "3"], ["--data.noise", "{corrupt: [image], probability: 0.5}"]):
        assert run("embed", config, "features", *options) == 2
        assert "holds features with other data" in capsys.readouterr().err


def test_weights_of_a_checkpoint_are_embedded_where_one_is_named(place):
    config = write_config("live.json", DATA)
    assert run("fit", config, "run") == 0
    (path,) = (p for p in (place / "run").glob("checkpoints/*.ckpt") if "9" in p.stem)
    assert run("embed", config, "features", "--seed_everything", "5", "--ckpt_path", str(path)) == 0
    network = build()
    weights = torch.load(path, weights_only=True)["state_dict"]
    network.load_state_dict({name.removeprefix("network."): value for name, value in weights.items()})
    assert json.loads((place / "features/features.json").read_text())["keys"] == network.feature_keys()


def test_a_shard_gives_back_what_it_was_given(tmp_path):
    generator = torch.Generator().manual_seed(0)
    samples = [
        {
            "id": f"über/{n}",
            "captions": [f"caption {k}" for k in range(n % 3)],
            "match_id": -(2**63) + n,
            "label": torch.rand(4, generator=generator).round(),
            "image_embed": torch.randn(6, generator=generator),
            "text_embed": torch.randn(n % 3, 5, generator=generator),
        }
        for n in range(11)
    ]
    write_shard(tmp_path / "deep" / "shard.arrow", samples)
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["shard.arrow"]
    shard = Shard(tmp_path / "deep" / "shard.arrow")
    for n, sample in enumerate(samples):
        assert shard.ids[n].as_py() == sample["id"]
        assert shard.captions[n].as_py() == sample["captions"]
        assert shard.match_id[n] == sample["match_id"]
        np.testing.assert_array_equal(shard.label[n], sample["label"])
        np.testing.assert_array_equal(shard.image_embed[n], sample["image_embed"])
        rows = shard.text_embed[shard.text_ends[n] : shard.text_ends[n + 1]]
        np.testing.assert_array_equal(rows, sample["text_embed"])
    (tmp_path / "deep" / "shard.arrow").write_bytes(b"ARROW1 cut")
    with pytest.raises(ValueError, match=r"cannot be read: .* Embed the data again; intact files are kept"):
        Shard(tmp_path / "deep" / "shard.arrow")


def test_a_folder_without_features_is_refused(tmp_path):
    module = EmbeddingDataModule(str(tmp_path), global_batch_size=4)
    module.input_spec = InputSpec(32, None)
    with pytest.raises(ValueError, match=r"holds no stored features. Run `siglightning embed`"):
        module.setup()
    (tmp_path / "features.json").write_text("{}")
    with pytest.raises(ValueError, match="does not describe stored features"):
        module.setup()
