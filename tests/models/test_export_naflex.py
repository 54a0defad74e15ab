"""Siglip2Model (NaFlex) to ours and back: numbers by transformers alone, whatever the vocabulary."""

import json

import pytest
import torch
import transformers
from foreign import sentencepiece_file

from siglightning.commands.export.verify import AWKWARD, same_ids
from siglightning.models import TowerConfig, TwoTower, load_two_tower
from siglightning.models.export import FORMATS, refusal

CLOSE = 1e-5  # fp32 sums in another order differ by some 1e-7
SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
TEXT = TowerConfig(
    "local:text_transformer", kwargs={"width": 16, "depth": 1, "heads": 2, "pooling": "last", "mask_padding": False}
)
PICTURES = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def build(tmp_path):
    """A function from a tokenizer, and a text tower other than its own, to a network of random weights."""
    text = SMALL | {"vocab_size": 49408, "max_position_embeddings": 16, "projection_size": 16}
    vision = SMALL | {"num_patches": 9, "patch_size": 8}  # positions for 24 pixels, resized to the 32 of the pictures
    transformers.Siglip2Config(text_config=text, vision_config=vision).save_pretrained(tmp_path / "naflex")
    tower = TowerConfig(f"hf:{tmp_path / 'naflex'}")

    def make(tokenizer, text=None, *, canonicalize=False):
        given = {"image_size": 32, "context_length": 12, "tokenizer": tokenizer, "canonicalize": canonicalize}
        network = TwoTower(tower, text or tower, **given)
        torch.manual_seed(2)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if name not in ("log_scale", "bias"):
                    parameter.add_(0.1 * torch.randn_like(parameter))
        return network.eval()

    return make


def logits(network, image, text):
    return network.log_scale.exp() * image @ text.T + network.bias


@torch.no_grad()
@pytest.mark.parametrize("text", [None, TEXT], ids=["both towers", "another text tower"])
@pytest.mark.parametrize("pieces", [False, True], ids=["clip", "sentencepiece"])
def test_naflex_goes_out_and_comes_back(build, tmp_path, pieces, text):
    tokenizer = sentencepiece_file(tmp_path / "small.model") if pieces else "clip"
    network, out = build(tokenizer, text, canonicalize=pieces), tmp_path / "out"
    out.mkdir()
    FORMATS["transformers"].write(network, out, {})
    config = json.loads((out / "config.json").read_text())
    assert (config["architectures"], config["vision_config"]["num_patches"]) == (["Siglip2Model"], 9)
    back, theirs = load_two_tower(out).eval(), FORMATS["transformers"].reload(out)
    assert (back.image_size, back.context_length, back.resizing) == (32, 12, network.resizing)
    assert (network.log_scale, network.bias) == (back.log_scale, back.bias)
    # SiglipTokenizer drops underscores, where the form that was trained on has spaces.
    captions = [caption for caption in AWKWARD if not (pieces and "_" in caption)]
    ids, out_ids, back_ids = network.tokenizer(captions), theirs.tokens(captions), back.tokenizer(captions)
    assert same_ids(network, theirs, ids, out_ids)
    assert torch.equal(out_ids, back_ids)
    ours, others, read = (
        network(PICTURES, ids),
        back(PICTURES, back_ids),
        theirs.outputs(theirs.pixels([*PICTURES]), out_ids),
    )
    for one, other, third in zip((*ours, logits(network, *ours)), (*others, logits(back, *others)), read, strict=True):
        assert (one - other).abs().max() < CLOSE
        assert (one - third).abs().max() < CLOSE


def test_what_naflex_does_not_go_to_is_told(build, tmp_path):
    network = build("clip")
    assert "a graph has a fixed number" in refusal(network, "onnx")
    assert "open_clip builds image towers of timm and its own" in refusal(network, "open_clip")
