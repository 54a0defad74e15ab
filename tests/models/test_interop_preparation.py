"""How pictures are prepared comes along with the weights, where the name of a tower alone does not tell it."""

import foreign
import pytest
import torch
import yaml

from siglightning.batch import Resizing
from siglightning.models import TowerConfig, TwoTower, load_two_tower
from siglightning.models.export import FORMATS
from siglightning.models.hf_checkpoints import CLIP_MEAN
from siglightning.models.interop import open_checkpoint
from siglightning.models.interop.from_open_clip import preparation_of

SQUASHED, CUT = Resizing(None, "bicubic", resampler="pillow"), Resizing(1.0, "bicubic", resampler="pillow")


@pytest.mark.parametrize(
    ("name", "tag", "mean", "resizing"),
    [("ViT-B-16-SigLIP", True, (0.5, 0.5, 0.5), SQUASHED), ("ViT-B-32", "openai", CLIP_MEAN, CUT)],
)
def test_a_run_with_weights_of_open_clip(tmp_path, name, tag, mean, resizing):
    """Their list of weights tells; a tower of that name at random would be CLIP's for both."""
    found = preparation_of(TowerConfig(f"open_clip:{name}", tag))
    assert found is not None
    assert (found.mean, found.resizing) == (mean, resizing)
    tower = {"name": f"open_clip:{name}", "pretrained": tag}
    network = {"class_path": "siglightning.models.TwoTower", "init_args": {"image_tower": tower, "text_tower": tower}}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"network": network}}}))
    torch.save({"state_dict": {"network.log_scale": torch.ones(1)}, "global_step": 5}, tmp_path / "my.ckpt")
    checkpoint = open_checkpoint(tmp_path / "my.ckpt")
    assert checkpoint.preparation == found
    assert checkpoint.arguments["image_tower"] == TowerConfig(f"open_clip:{name}", False)  # its weights are ours
    assert checkpoint.origin.global_step == 5


def test_towers_that_know_it_themselves():
    for tower in (
        TowerConfig("open_clip:ViT-B-16-SigLIP"),
        TowerConfig("open_clip:local-dir:somewhere", True),
        TowerConfig("open_clip:ViT-B-32", "weights.pt"),
    ):
        assert preparation_of(tower) is None


def test_a_folder_of_safetensors_keeps_it(tmp_path):
    towers = {
        "image_tower": TowerConfig("local:conv", kwargs={"width": 8, "depths": [1], "patch": 8}),
        "text_tower": TowerConfig("local:text_transformer", kwargs={"width": 8, "depth": 0, "heads": 1}),
    }
    network = TwoTower(**towers, image_size=32)
    network.image_tower.mean, network.image_tower.std = (0.1, 0.2, 0.3), (0.4, 0.5, 0.6)
    network.resizing = network.image_tower.resizing = Resizing(0.9, "bilinear", "down", "pillow")
    FORMATS["safetensors"].write(network, tmp_path, towers | {"image_size": 32})
    back = load_two_tower(tmp_path)
    pictures = torch.randint(0, 256, (2, 3, 32, 32), dtype=torch.uint8)
    assert torch.equal(back.normalise(pictures), network.normalise(pictures))
    assert back.resizing == back.image_tower.resizing == network.resizing


def test_two_towers_of_one_folder_stay_two_of_one(tmp_path):
    """They share a space, and would get projections otherwise."""
    foreign.clip().save_pretrained(tmp_path / "clip")
    tokenizer = foreign.sentencepiece_file(tmp_path / "small.model")
    checkpoint = open_checkpoint(tmp_path / "clip")
    network = load_two_tower(tmp_path / "clip", tokenizer=tokenizer, init_bias=None)
    (tmp_path / "out").mkdir()
    arguments = checkpoint.arguments | {"tokenizer": tokenizer, "init_bias": None}
    FORMATS["safetensors"].write(network, tmp_path / "out", arguments)
    (tmp_path / "out").rename(tmp_path / "moved")
    (tmp_path / "clip").rename(tmp_path / "gone")
    (tmp_path / "small.model").unlink()
    back = load_two_tower(tmp_path / "moved", init_bias=None)
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in network.state_dict().items())
    assert back.resizing.crop == 1.0
    assert back.tokenizer(["a cat"]).shape == (1, 8)
