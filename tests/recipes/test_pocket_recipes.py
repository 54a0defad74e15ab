"""The pocket twins, each from its command to its files, for a few steps on the embedded drawings."""

import csv
import json
import re
from pathlib import Path

import pytest
import yaml

from siglightning.cli import main
from siglightning.cli.configs import shipped_configs

QUICK = ["--trainer.max_steps=2", "--trainer.log_every_n_steps=1", "--trainer.enable_progress_bar=false"]
SMALL = ["--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1", "--trainer.num_sanity_val_steps=0"]
UNTESTED = "--test_after_fit=false"
RECIPES = shipped_configs() / "recipe"


def fit(recipe, run_dir, *more, variant=()):
    configs = [f"--config={name}" for name in (f"recipe/{recipe}", *variant)]
    assert main(["fit", *configs, *QUICK, *SMALL, "--run_dir", str(run_dir), *more]) == 0
    with (run_dir / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert len(rows) == 2
    assert json.loads((run_dir / "exit.json").read_text())["exit_code"] == 0
    return yaml.safe_load((run_dir / "config.yaml").read_text()), rows


def test_pocket_siglip_and_its_baseline(tmp_path):
    config, rows = fit("pocket_siglip", tmp_path / "run", "--data.noise", "{corrupt: [image], probability: 0.5}")
    assert config["data"]["init_args"]["noise"]["probability"] == 0.5
    assert rows[0]["train/logit_bias"]
    assert (tmp_path / "run" / "summary.md").is_file()
    config, rows = fit("pocket_siglip", tmp_path / "clip", UNTESTED, variant=["variant/softmax"])
    assert config["model"]["init_args"]["loss"] == "softmax"
    assert not rows[0].get("train/logit_bias")


def test_pocket_unlocked(tmp_path):
    fit("pocket_unlocked", tmp_path / "run", UNTESTED)


def test_pocket_siglit_on_stored_features(tmp_path):
    """`embed` with the drawings, `fit` on what it stored, as with the full-size recipes."""
    root = tmp_path / "features"
    few = ["--config=recipe/pocket_siglit", "--config=data/pictograms", "--data.train_styles=[noto]"]
    assert main(["embed", *few, "--trainer.enable_progress_bar=false", f"--run_dir={root}"]) == 0
    config, _ = fit("pocket_siglit", tmp_path / "run", f"--data.root={root}", UNTESTED)
    assert config["data"]["class_path"] == "siglightning.data.EmbeddingDataModule"


def test_pocket_msiglip(tmp_path):
    fit("pocket_msiglip", tmp_path / "run", UNTESTED)


def settings(name):
    return yaml.safe_load((RECIPES / f"{name}.yaml").read_text())["model"]["init_args"]


@pytest.mark.parametrize("pocket", sorted(path.stem for path in RECIPES.glob("pocket_*.yaml")))
def test_a_twin_has_the_form_of_the_recipes_that_it_names(pocket):
    """Same optimizer with the same settings but the rate, same rules, same towers but for their size."""
    text = (RECIPES / f"{pocket}.yaml").read_text()
    twins = re.findall(r"\b(?:recipe/)?((?:m?siglip|siglit)_\w+)", text.partition(", on the embedded drawings")[0])
    assert twins
    small = settings(pocket)
    for name in twins:
        full = settings(name)
        if name == "siglit_g14_b":  # Adafactor, which pocket_siglip runs
            full["optimizer"] = settings("siglit_g14")["optimizer"]
        assert small["optimizer"] == full["optimizer"]
        assert small.get("rules") == full.get("rules")
        towers = [config["network"]["init_args"] for config in (small, full)]
        shapes = [tower["text_tower"]["kwargs"] for tower in towers]
        assert [shape["pooling"] for shape in shapes] == ["last", "last"]
        assert [shape["mask_padding"] for shape in shapes] == [False, False]
        assert len({"bottleneck" in shape for shape in shapes}) == 1
        assert len({bool(tower.get("freeze_image")) for tower in towers}) == 1
        assert all(tower["image_tower"]["name"].startswith("timm:vit_") for tower in towers)


def test_every_recipe_of_the_paper_has_a_twin():
    told = "".join(path.read_text().partition(", on the embedded")[0] for path in RECIPES.glob("pocket_*.yaml"))
    full = [path.stem for kind in ("siglip", "siglit", "msiglip") for path in Path(RECIPES).glob(f"{kind}_*.yaml")]
    assert [name for name in full if name != "siglit_demo" and name not in told] == []
