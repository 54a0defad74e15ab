"""Weights of any origin: their tokens, pixels and loss at step 0 against those of the run that begins with them."""

import json
import math
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from examined import SMALL, case_of, found, one, quiet, with_network

from siglightning.batch import Resizing
from siglightning.commands.doctor import Described, Origin
from siglightning.models.token_record import TokenRecord
from siglightning.models.tokenizers import Tokenizer

sys.path.append(str(Path(__file__).parents[1] / "models"))
from foreign import BIAS, T_PRIME, as_big_vision, clip, open_clip_model, sentencepiece_file, siglip

BOTH = frozenset({"image tower", "text side"})


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """`siglip`: a SiglipModel, its tokenizer and processor; `padded`, `shifted`: with another one; `plain.model`."""
    root = tmp_path_factory.mktemp("foreign")
    plain = sentencepiece_file(root / "plain.model")
    siglip().save_pretrained(root / "siglip")
    transformers.SiglipTokenizer(plain).save_pretrained(root / "siglip")
    processor = {"size": {"height": 32, "width": 32}}
    for name in ("padded", "shifted"):
        shutil.copytree(root / "siglip", root / name)
    transformers.SiglipImageProcessor(**processor).save_pretrained(root / "siglip")
    transformers.SiglipImageProcessor(**processor, image_mean=[0.1] * 3).save_pretrained(root / "shifted")
    transformers.SiglipTokenizer(plain, pad_token="<pad>").save_pretrained(root / "padded")
    return root


def network(folder, **settings):
    """The recipe's model with both towers of a folder of transformers, at random."""
    tower = f"hf:{folder}"
    own = {"image_tower": tower, "text_tower": tower, "embed_dim": None, "image_size": None, "context_length": None}
    return with_network(**{**own, **settings})


def loaded(source, **settings):
    """The recipe's model with a network that brings its weights."""
    network = {"class_path": "siglightning.models.load_two_tower", "init_args": {"source": str(source), **settings}}
    return {**SMALL["model"], "init_args": {**SMALL["model"]["init_args"], "network": network}}


@pytest.mark.parametrize("way", ["init_from", "checkpoint", "load_two_tower"])
def test_a_folder_of_transformers(folders, tmp_path, way):
    folder = folders / "siglip"
    if way == "load_two_tower":
        case = case_of(tmp_path, model=loaded(folder))
    elif way == "checkpoint":
        case = case_of(tmp_path, model=network(folder), checkpoint=folder)
    else:
        case = case_of(tmp_path, f"--init_from={folder}", model=network(folder))
    assert case.origin.told() == f"weights of {folder}, of transformers"
    quiet("tokens", case)
    assert f"captions become ids as for {folder}" in found("tokens", case)[1].text
    quiet("pixels", case)
    assert f"as {folder} had them" in found("pixels", case)[1].text
    values = found("step 0", case)[0].values
    assert values["scale"] == pytest.approx(math.exp(T_PRIME), rel=1e-6)  # fp32
    assert values["bias"] == BIAS
    assert "do not tell pairs from others here" in one("step 0", case, "error")  # random weights
    assert "weight decay of 0.01 on the text_tower" in one("groups", case, "warning")


def test_captions_that_a_siglip_did_not_see(folders, tmp_path):
    """Each is a setting that loads and trains, and ruins the text tower."""
    folder, plain = folders / "siglip", str(folders / "plain.model")
    text = one("tokens", case_of(tmp_path, model=loaded(folder, tokenizer=plain)), "error")
    assert "lower_cases False, there True; strips_punctuation False, there True" in text
    assert "`canonicalize: true`" in text
    case = case_of(tmp_path, model=network(folders / "padded", context_length=4), checkpoint=folder)
    text = one("tokens", case, "error")
    assert "context_length 4, there 8; pad_id 0, there 1" in text
    assert f"`tokenizer: hf:{folder}` and `context_length: 8`" in text
    text = one("tokens", case_of(tmp_path, model=loaded(folder, tokenizer=plain, canonicalize=True)), "warning")
    assert "of 4 awkward captions" in text  # an underscore is a space to big_vision, and nothing to transformers


def test_a_checkpoint_whose_own_tokenizer_is_unlike_its_family(folders, tmp_path):
    """As one that was saved with another padding than the model was trained with: its own, and wrong."""
    text = one("tokens", case_of(tmp_path, model=loaded(folders / "padded")), "warning")
    assert "not as SigLIP was trained: pad_id 0, there 1" in text


def test_pictures_that_a_siglip_did_not_see(folders, tmp_path):
    folder = folders / "shifted"
    case = case_of(tmp_path, model=network(folders / "siglip"), checkpoint=folder)
    text = one("pixels", case, "error")
    assert f"not as {folder} had its pictures: mean 0.5, there 0.1" in text
    assert f"`source: {folder}`" in text

    def told(**changes):
        mine = found("pixels", case)[0].values
        described = replace(case.origin.described.image, mean=mine["mean"], **changes)
        return replace(case, origin=replace(case.origin, described=Described(image=described)))

    cut = told(resizing=Resizing(crop=1.0))
    assert "squashed, there the middle cut out" in one("pixels", cut, "warning")
    finer = told(resizing=Resizing(resampler="pillow"), image_size=64)
    quiet("pixels", finer)
    text = found("pixels", finer)[1].text
    assert "bicubic of torchvision, there bicubic of pillow: a few grey levels" in text
    assert "64 there, so that positions are resized" in text
    unknown = replace(case, origin=replace(case.origin, described=Described(unknown="it is silent")))
    assert "cannot be told: it is silent" in one("pixels", unknown, "warning")


def test_arrays_of_big_vision(folders, tmp_path):
    """They hold no tokenizer: what is known of SigLIP stands in."""
    path = tmp_path / "siglip.npz"
    np.savez(path, **as_big_vision(siglip()))
    settings = {"tokenizer": str(folders / "plain.model")}
    case = case_of(tmp_path, model=network(folders / "siglip", **settings), checkpoint=path)
    assert case.origin.told() == f"weights of {path}, of big_vision"
    assert "does not tell with which tokenizer" in one("tokens", case, "warning")
    text = one("tokens", case, "error")
    assert "not as SigLIP was trained: lower_cases False, there True; strips_punctuation False, there True" in text
    quiet("pixels", case)
    assert found("step 0", case)[0].values["bias"] == BIAS


def test_a_softmax_checkpoint_gets_its_bias_by_rule(folders, tmp_path):
    clip().save_pretrained(tmp_path / "clip")
    model = network(tmp_path / "clip", tokenizer=str(folders / "plain.model"))
    case = case_of(tmp_path, model=model, checkpoint=tmp_path / "clip")
    values = found("step 0", case)[0].values
    assert values["bias"] == pytest.approx(-math.log(31), rel=1e-6)  # fp32
    assert "does not tell with which tokenizer" in one("tokens", case, "warning")
    told = TokenRecord.of(case.task.network.tokenizer)
    case.origin = replace(case.origin, described=Described(replace(told, pad_id=9)))
    errors = [each for each in found("tokens", case) if each.level == "error"]
    assert errors == []  # CLIP looks back from the end of the text: padding means nothing to it


def test_a_file_of_open_clip(folders, tmp_path):
    model, config = open_clip_model(tmp_path, "clip")
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    settings = {"image_tower": f"open_clip:{config}", "text_tower": f"open_clip:{config}"}
    small = network("", **settings, tokenizer=str(folders / "plain.model"))
    case = case_of(tmp_path, f"--init_from={tmp_path / 'weights.pt'}", model=small)
    assert case.origin.kind == "open_clip"
    assert found("step 0", case)[0].values["scale"] == pytest.approx(math.exp(T_PRIME), rel=1e-6)  # fp32
    assert "as" in found("pixels", case)[1].text
    quiet("pixels", case)


def test_another_tokenizer_than_that_of_a_run(small):
    def told(**changes):
        record = replace(TokenRecord.of(Tokenizer("clip", 24)), **changes)
        return replace(small, origin=Origin("a.ckpt", step=5, parts=BOTH, described=Described(record)))

    quiet("tokens", told())
    text = one("tokens", told(context_length=32, pad_id=7, strips_punctuation=True), "error")
    assert "context_length 24, there 32; pad_id 0, there 7; strips_punctuation False, there True" in text
    assert "`context_length: 32` and `canonicalize: true`" in text
    assert "others for 4 of 4 awkward captions (clip)" in one("tokens", told(ids="0"), "error")
    silent = replace(small, origin=Origin("a.ckpt", parts=BOTH, described=Described(unknown="it is old")))
    assert "does not tell with which tokenizer its text tower was trained (it is old)" in one(
        "tokens", silent, "warning"
    )


def test_a_record_tells_padding_from_the_end_of_a_text():
    """Some vocabularies pad with the id that closes each text: the same ids, padded otherwise, are the same ids."""
    one, other = TokenRecord.of(Tokenizer("clip", 24)), TokenRecord.of(Tokenizer("clip", 24, pad_id=49407))
    assert one == replace(other, pad_id=0)


def test_a_tower_that_masks_another_padding(small, monkeypatch):
    monkeypatch.setattr(small.task.network, "tokenizer", Tokenizer("clip", 24, pad_id=9))
    assert "the tower masks 0 as padding" in one("tokens", small, "error")


def test_captions_unlike_those_of_the_towers_family(tmp_path):
    text = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    text |= {"tokenizer_kwargs": {"clean": "canonicalize"}}
    vision = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    path = tmp_path / "small_family.json"
    path.write_text(json.dumps({"embed_dim": 12, "custom_text": True, "vision_cfg": vision, "text_cfg": text}))
    settings = {"text_tower": {"name": f"open_clip:{path}"}, "context_length": None, "tokenizer": "clip"}
    case = case_of(tmp_path, model=with_network(**settings))
    assert "strips_punctuation False, there True" in one("tokens", case, "warning")
    case.task.network.tokenizer = Tokenizer("clip", 24, canonicalize=True)
    quiet("tokens", case)
