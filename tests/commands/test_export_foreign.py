"""Checkpoints of other libraries out by the command line, and what their cards say."""

import hashlib
import re
import string
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import transformers
from exporting import CLOSE, drawings, require_same_values, run
from PIL import Image

from siglightning.data.transforms import resize
from siglightning.models import load_two_tower

sys.path.append(str(Path(__file__).parents[1] / "models"))
import foreign
from foreign import as_big_vision, open_clip_model, sentencepiece_file


def foreign_sources(folder):
    """One of each library, at random, and what has to be said of it."""
    tokenizer = ["--tokenizer", sentencepiece_file(folder / "small.model")]
    foreign.siglip().save_pretrained(folder / "siglip")
    np.savez(folder / "siglip.npz", **as_big_vision(foreign.siglip()))
    model, config = open_clip_model(folder, "clip")
    torch.save(model.state_dict(), folder / "clip.pt")
    return {
        "transformers": [folder / "siglip", *tokenizer],
        "big_vision": [folder / "siglip.npz", *tokenizer],
        "open_clip": [folder / "clip.pt", *tokenizer, "--architecture", config],
    }


@torch.no_grad()
def test_naflex_goes_to_transformers_and_back(tmp_path, capsys):
    """By the command line, and as the card's snippet computes it: of a picture that is no square, too."""
    foreign.siglip2().save_pretrained(tmp_path / "naflex")
    pieces = ["<pad>", "<eos>", "<bos>", "<unk>", "<mask>", "▁", *string.ascii_lowercase]
    vocabulary = {piece: number for number, piece in enumerate(pieces)}
    transformers.Siglip2Tokenizer(vocabulary, model_input_names=["input_ids"]).save_pretrained(tmp_path / "naflex")
    code, printed = run(capsys, tmp_path / "naflex", "--format", "transformers", "--out", tmp_path / "out", "--verify")
    assert code == 0, printed
    assert "tokens of captions: equal\n" in printed  # awkward strings included
    network, back = load_two_tower(tmp_path / "naflex"), load_two_tower(tmp_path / "out")
    require_same_values(network.eval(), back.eval(), *drawings(network), to_the_bit=True)
    wide = torch.cat(list(drawings(network)[0][:3]), dim=2)
    Image.fromarray(wide.permute(1, 2, 0).numpy()).save(tmp_path / "picture.png")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "Pictures are squashed first" in card
    snippet = re.search("```python\n(.*?)```", card, re.DOTALL).group(1)
    place = {}
    exec(snippet.replace("DIR", str(tmp_path / "out")).replace("picture.png", str(tmp_path / "picture.png")), place)
    exact = replace(network.resizing, resampler="pillow")
    image, text = network(resize([wide], 32, exact), network.tokenizer(["a cat", "a dog"]))
    assert (place["logits"] - network.log_scale.exp() * image @ text.T - network.bias).abs().max() < CLOSE


@torch.no_grad()
def test_checkpoints_of_other_libraries_go_out(tmp_path, capsys):
    """Their cards say what is known: name, kind and checksum, and nothing of data, recipe and metrics."""
    for kind, order in foreign_sources(tmp_path).items():
        out = tmp_path / f"out_{kind}"
        code, printed = run(capsys, *order, "--format", "safetensors", "--out", out, "--verify")
        assert code == 0, printed
        assert f"Exporting {order[0]} (of {kind}) to safetensors" in printed
        back, options = load_two_tower(out, init_bias=None if kind == "open_clip" else "auto").eval(), {}
        if kind == "open_clip":
            options = {"architecture": str(order[-1]), "init_bias": None}
        direct = load_two_tower(order[0], tokenizer=str(order[2]), **options).eval()
        assert all(torch.equal(value, back.state_dict()[name]) for name, value in direct.state_dict().items())
        assert (direct.image_tower.mean, direct.resizing) == (back.image_tower.mean, back.resizing)
        assert torch.equal(direct.tokenizer(["two dogs"]), back.tokenizer(["two dogs"]))
        card = (out / "README.md").read_text()
        file = order[0] / "model.safetensors" if order[0].is_dir() else order[0]
        assert f"# {order[0].name}\n" in card
        assert f"From `{order[0].name}`, a checkpoint of kind {kind}." in card
        assert f"`{file.name}`, SHA-256 `{hashlib.sha256(file.read_bytes()).hexdigest()}`" in card
        assert str(tmp_path) not in card
        assert re.findall("^## (.*)$", card, re.MULTILINE) == ["Use", "Export"]
