"""The recipes of the student reports, each from its command to its files, on small trees in the published layouts.

Towers are small random ones of the same kinds, from folders as the hub would give them; all else is the recipe's.
"""

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import transformers
import yaml
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from trees import PLACES, write_human_action, write_million_aid

from siglightning.cli import main
from siglightning.data.sources import HUMAN_ACTIONS

SMALL = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 12, "num_attention_heads": 2}
PICTURE = {"image_size": 32, "patch_size": 8}
QUICK = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]


def save_tokenizer(folder):
    words = {word for name in (*HUMAN_ACTIONS, *PLACES) for word in name.rpartition("/")[2].split("_")}
    words |= {"a", "photo", "of", "person", "satellite", "image", "harbour", "snow", "."}
    vocabulary = {word: number for number, word in enumerate(["<unk>", "<pad>", "<eos>", *sorted(words)])}
    fast = FastTokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    fast.pre_tokenizer = Whitespace()
    names = {"unk_token": "<unk>", "pad_token": "<pad>", "eos_token": "<eos>"}
    transformers.PreTrainedTokenizerFast(tokenizer_object=fast, **names).save_pretrained(folder)
    return {"vocab_size": len(vocabulary), "max_position_embeddings": 12, "pad_token_id": 1, "eos_token_id": 2}


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """SigLIP and CLIP of twelve blocks, as folders."""
    torch.manual_seed(0)
    siglip, clip = tmp_path_factory.mktemp("siglip"), tmp_path_factory.mktemp("clip")
    text = SMALL | save_tokenizer(siglip) | {"num_hidden_layers": 1, "bos_token_id": 2}
    transformers.SiglipModel(
        transformers.SiglipConfig(text_config=text | {"projection_size": 32}, vision_config=SMALL | PICTURE)
    ).save_pretrained(siglip)
    save_tokenizer(clip)
    transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=SMALL | PICTURE, projection_dim=24)
    ).save_pretrained(clip)
    return {"siglip": f"hf:{siglip}", "clip": f"hf:{clip}"}


@pytest.fixture(scope="module")
def human_action(tmp_path_factory):
    return write_human_action(tmp_path_factory.mktemp("har"), per_class=8, test_per_class=2)


@pytest.fixture(scope="module")
def million_aid(tmp_path_factory):
    return write_million_aid(tmp_path_factory.mktemp("aid"), per_class=5, test_per_class=1)


def run(command, recipe, tower, root, run_dir, *more, texts=False, data=()):
    """One command; its configuration as it was run."""
    network = "--model.init_args.network.init_args"
    names = [f"{network}.{part}_tower.name={tower}" for part in (["image", "text"] if texts else ["image"])]
    where = [*data, f"--data.init_args.root={root}", "--data.init_args.num_workers=0"]
    arguments = ["--config", f"recipe/{recipe}", *names, *where, *QUICK, "--run_dir", str(run_dir), *more]
    assert main([command, *arguments]) == 0
    folder = Path(run_dir) if command == "fit" else Path(run_dir) / command
    return yaml.safe_load((folder / "config.yaml").read_text())


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def fine_tuned(recipe, tower, root, run_dir, classes, *more, texts=False):
    """A fit of two epochs, and what every fine-tuning run leaves."""
    config = run("fit", recipe, tower, root, run_dir, "--trainer.max_epochs=2", *more, texts=texts)
    epochs = rows(run_dir / "epochs.csv")
    assert [row["epoch"] for row in epochs] == ["1", "2"]
    assert all(float(row[name]) >= 0 for row in epochs for name in ("train_loss", "val_loss", "val_acc", "seconds"))
    assert len(list((run_dir / "checkpoints").glob("best-*.ckpt"))) == 1
    figures = {path.name for path in (run_dir / "figures").glob("*.png")}
    assert {
        "classes.png",
        "epochs.png",
        "training_curves.png",
        "validation_curves.png",
        "confusion_test.png",
    } <= figures
    assert list((run_dir / "samples").glob("*/*.png"))
    metrics = json.loads((run_dir / "summary.json").read_text())["test"]
    assert metrics["acc"]["chance"] == pytest.approx(1 / classes)
    return config


def optimizer_of(config):
    found = config["model"]["init_args"]["optimizer"]
    return found["class_path"], found["init_args"]


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_human_actions(towers, human_action, tmp_path, kind):
    config = fine_tuned(f"har_{kind}", towers[kind], human_action, tmp_path / "run", 15)
    name, settings = optimizer_of(config)
    assert (name, settings["weight_decay"]) == ("torch.optim.AdamW", 1e-4)
    assert config["data"]["init_args"]["global_batch_size"] == 32
    assert config["model"]["init_args"]["train"] == "full"
    groups = json.loads((tmp_path / "run" / "model.json").read_text())
    assert groups["trained"] == groups["parameters"]


def test_human_actions_with_salient_patches_and_two_losses(towers, human_action, tmp_path):
    small = ["--data.init_args.global_batch_size=36", "--model.init_args.network.init_args.micro_batch_size=12"]
    config = fine_tuned("har_aclip", towers["clip"], human_action, tmp_path / "run", 15, *small, texts=True)
    assert config["model"]["init_args"]["objective"] == {"classification": 1.0, "contrastive": 1.0}
    assert optimizer_of(config)[1]["lr"] == 1e-4
    logged = rows(tmp_path / "run" / "metrics.csv")
    first = next(row for row in logged if row["train/contrastive_loss"])
    total = float(first["train/classification_loss"]) + float(first["train/contrastive_loss"])
    assert float(first["train/loss"]) == pytest.approx(total, rel=1e-3)  # sums in bf16
    recipe = yaml.safe_load(Path("configs/recipe/har_aclip.yaml").read_text())
    network = recipe["model"]["init_args"]["network"]["init_args"]
    assert network["micro_batch_size"] * 64 == recipe["data"]["init_args"]["global_batch_size"] == 4096


def test_satellite_pictures_from_one_label_to_several(towers, million_aid, tmp_path):
    """Last 3 and last 6 blocks, then T = 4 on the pictures of the test set and on a folder without labels."""
    trained = {}
    for last_n in (3, 6):
        folder = tmp_path / f"last{last_n}"
        config = fine_tuned(f"satellite_last{last_n}", towers["siglip"], million_aid, folder, 51)
        assert optimizer_of(config)[0] == "lion_pytorch.Lion"
        assert optimizer_of(config)[1]["betas"][0] == 0.9
        assert config["model"]["init_args"]["train"] == {"last_n": last_n, "from_epoch": 0}
        trained[last_n] = json.loads((folder / "model.json").read_text())["trained"]
    assert trained[6] > trained[3]

    (best,) = (tmp_path / "last6" / "checkpoints").glob("best-*.ckpt")
    several = tmp_path / "several"
    recipe = "satellite_multilabel", towers["siglip"]
    config = run("test", *recipe, million_aid, several, "--ckpt_path", str(best))
    assert config["model"]["init_args"]["temperature"] == 4.0
    sets = json.loads((several / "test" / "summary.json").read_text())
    assert {name.partition(", ")[2].split(" ")[0] for name in sets} >= {"softmax", "sigmoid"}

    pictures = million_aid / "test" / "water_area"
    run("predict", *recipe, pictures, several, "--ckpt_path", str(best), data=("--config", "data/pictures"))
    assert list((several / "predict").glob("*.parquet"))
    assert list((several / "predict" / "cards").glob("*/*.png"))


def test_satellite_pictures_by_prompts_alone(towers, million_aid, tmp_path):
    zeroshot = tmp_path / "zeroshot"
    run("test", "satellite_zeroshot", towers["siglip"], million_aid, zeroshot, "--resume=never", texts=True)
    metrics = json.loads((zeroshot / "test" / "summary.json").read_text())["test"]
    assert metrics["zeroshot_acc"]["chance"] == pytest.approx(1 / 51)
    assert (zeroshot / "test" / "figures" / "ranked_test.png").is_file()

    asked, picture = tmp_path / "asked", next((million_aid / "test" / "water_area").rglob("*.jpg"))
    flags = [f"--model.network.source={towers['siglip']}", f"--data.root={picture}", "--data.num_workers=0"]
    flags += ["--model.prompts", '[harbour, "a field of snow", airport]', "--resume=never", f"--run_dir={asked}"]
    assert main(["predict", "--config", "recipe/satellite_prompts", *flags, *QUICK]) == 0
    (table,) = (asked / "predict").glob("*.parquet")
    assert pq.read_table(table)["id"].to_pylist() == [picture.name] * 3
