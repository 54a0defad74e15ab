"""Models of other libraries, loaded as ours: the same embeddings and logits, t' and b."""

import math

import numpy as np
import open_clip
import pytest
import torch
from foreign import BIAS, IMAGE, T_PRIME, TEXT, as_big_vision, clip, logits, open_clip_model, sentencepiece_file
from foreign import siglip as small_siglip
from foreign import siglip2 as small_siglip2
from safetensors.torch import save_file
from torch.nn import functional

from siglightning.models import TwoTower, load_two_tower
from siglightning.models.hf_checkpoints import CLIP_MEAN, CLIP_STD
from siglightning.models.positions import resize_positions
from siglightning.models.towers import TowerConfig

CLOSE = {"rtol": 0, "atol": 1e-6}  # of unit vectors in fp32: the same operations in the same order


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return sentencepiece_file(tmp_path_factory.mktemp("tokenizer") / "small.model")


def pixels(image, mean=(0.5,) * 3, std=(0.5,) * 3):
    image = image.double()
    return (image / 255 - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


@torch.no_grad()
def same(network, images, texts, expected_logits, image=IMAGE):
    """Embeddings and logits of ours against those of the library, in fp64: exp(5.25) magnifies roundings 190 times."""
    ours = network.double().eval()(image, TEXT)
    assert expected_logits.dtype == torch.float64
    torch.testing.assert_close(ours[0], functional.normalize(images, dim=-1), rtol=0, atol=1e-7)
    torch.testing.assert_close(ours[1], functional.normalize(texts, dim=-1), rtol=0, atol=1e-7)
    found = logits(*ours, network.log_scale.item(), 0.0 if network.bias is None else network.bias.item())
    # Both in one tolerance: constants that a library keeps in fp32, such as its mean and deviation, are magnified, too.
    torch.testing.assert_close(found, expected_logits, rtol=0, atol=1e-5)


@torch.no_grad()
def test_siglip_model_of_transformers(tmp_path, tokenizer, capsys):
    model = small_siglip()
    model.save_pretrained(tmp_path)
    network = load_two_tower(tmp_path, tokenizer=tokenizer)
    expected = model.double()(pixel_values=pixels(IMAGE), input_ids=TEXT)
    same(network, expected.image_embeds, expected.text_embeds, expected.logits_per_image)
    assert (network.log_scale.item(), network.bias.item()) == (T_PRIME, BIAS)
    network.set_auto_bias(1000)  # a learnt b is kept
    assert network.bias.item() == BIAS
    assert f"(transformers): t' = {T_PRIME:.5g}, b = {BIAS}" in capsys.readouterr().out
    assert load_two_tower(tmp_path, tokenizer=tokenizer, init_bias=None).bias is None  # for the softmax loss


@torch.no_grad()
def test_clip_model_gets_its_bias_by_rule(tmp_path, tokenizer, capsys):
    model = clip()
    model.save_pretrained(tmp_path)
    network = load_two_tower(tmp_path, tokenizer=tokenizer)
    expected = model.double()(pixel_values=pixels(IMAGE, CLIP_MEAN, CLIP_STD), input_ids=TEXT)
    same(network, expected.image_embeds, expected.text_embeds, expected.logits_per_image)
    assert "b by rule, -log(B - 1) of the batch when training begins" in capsys.readouterr().out
    network.set_auto_bias(17)
    assert network.bias.item() == pytest.approx(-math.log(16))
    assert network.log_scale.item() == T_PRIME  # beyond CLIP's clamp at log 100
    assert load_two_tower(tmp_path, tokenizer=tokenizer, init_bias=-3.0).bias.item() == -3


@torch.no_grad()
def test_naflex_reads_pictures_of_its_own_and_another_size(tmp_path, tokenizer):
    model = small_siglip2()
    model.save_pretrained(tmp_path)
    for size in (32, 48):
        image = torch.randint(0, 256, (4, 3, size, size), dtype=torch.uint8)
        network = load_two_tower(tmp_path, tokenizer=tokenizer, image_size=size)
        assert network.image_size == size
        grid = size // 8
        # The patches of transformers' own processor: rows of the grid, then pixels, colours innermost.
        patches = [
            pixels(image)[:, :, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8].permute(0, 2, 3, 1).flatten(1)
            for i in range(grid)
            for j in range(grid)
        ]
        expected = model.double()(
            pixel_values=torch.stack(patches, dim=1),
            pixel_attention_mask=torch.ones(4, grid**2, dtype=torch.long),
            spatial_shapes=torch.tensor([[grid, grid]] * 4),
            input_ids=TEXT,
        )
        same(network, expected.image_embeds, expected.text_embeds, expected.logits_per_image, image)
    with pytest.raises(ValueError, match="patches of 8 pixels; image_size 33 is no multiple"):
        load_two_tower(tmp_path, tokenizer=tokenizer, image_size=33)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["siglip", "siglip2", "clip"])
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_models_of_open_clip(tmp_path, tokenizer, kind, suffix):
    model, config = open_clip_model(tmp_path, kind)
    path = tmp_path / f"weights.{suffix}"
    state = model.state_dict()
    if suffix == "safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:  # as its training loop saves, from under DistributedDataParallel
        torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    network = load_two_tower(path, architecture=str(config), tokenizer=tokenizer)
    preprocess = model.visual.preprocess_cfg
    side = network.image_size
    image = torch.randint(0, 256, (4, 3, side, side), dtype=torch.uint8)
    images = model.double().encode_image(pixels(image, preprocess["mean"], preprocess["std"]))
    texts = model.encode_text(TEXT)
    bias = 0.0 if model.logit_bias is None else BIAS
    same(network, images, texts, logits(images, texts, T_PRIME, bias), image)
    assert network.bias_is_auto == (kind == "clip")


def test_a_folder_as_open_clip_writes_it(tmp_path, tokenizer, caplog):
    model, config = open_clip_model(tmp_path, "siglip")
    folder = tmp_path / "hub"
    folder.mkdir()
    preprocess = (
        '{"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "interpolation": "bilinear", "resize_mode": "squash"}'
    )
    text = f'{{"model_cfg": {config.read_text()}, "preprocess_cfg": {preprocess}}}'
    (folder / "open_clip_config.json").write_text(text)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    with caplog.at_level("WARNING"):
        open_clip.create_model(config.stem)
        assert "Model initialized randomly" in caplog.text
        caplog.clear()
        network = load_two_tower(folder, tokenizer=tokenizer)
    assert not caplog.text, "the weights are those of the folder"
    assert network.image_tower.mean == (0.5, 0.5, 0.5)
    assert (network.resizing.crop, network.resizing.interpolation) == (None, "bilinear")
    with torch.no_grad():
        torch.testing.assert_close(
            network.eval().encode_text(TEXT), model.encode_text(TEXT, normalize=True), rtol=0, atol=1e-6
        )


@torch.no_grad()
@pytest.mark.parametrize("form", ["params/", "", "scanned"])
@pytest.mark.parametrize("make", [small_siglip, small_siglip2])
def test_big_vision(tmp_path, tokenizer, form, make):
    """From the file alone: patches, layers, heads and widths are read off the shapes."""
    model = make()
    arrays = as_big_vision(model, scanned=form == "scanned", prefix="" if form == "" else "params/")
    np.savez(tmp_path / "siglip.npz", **arrays)
    network = load_two_tower(tmp_path / "siglip.npz", tokenizer=tokenizer)
    model.float().save_pretrained(tmp_path / "hf")
    reference = load_two_tower(tmp_path / "hf", tokenizer=tokenizer).eval()  # held to transformers above
    for ours, theirs in zip(network.eval()(IMAGE, TEXT), reference(IMAGE, TEXT), strict=True):
        torch.testing.assert_close(ours, theirs, **CLOSE)
    assert (network.log_scale.item(), network.bias.item()) == (T_PRIME, BIAS)
    if make is small_siglip:
        expected = model.double()(pixel_values=pixels(IMAGE), input_ids=TEXT)
        same(network, expected.image_embeds, expected.text_embeds, expected.logits_per_image)


def test_big_vision_in_half_precision_and_with_an_unknown_vocabulary(tmp_path, tokenizer):
    arrays = {}
    for name, value in as_big_vision(small_siglip()).items():
        half = torch.from_numpy(np.ascontiguousarray(value)).bfloat16().view(torch.int16).numpy()
        arrays[name] = half.view("V2")  # how numpy writes bfloat16
    np.savez(tmp_path / "half.npz", **arrays)
    network = load_two_tower(tmp_path / "half.npz", tokenizer=tokenizer)
    assert network.log_scale.item() == T_PRIME
    assert network.log_scale.dtype == next(network.image_tower.parameters()).dtype == torch.float32
    with pytest.raises(ValueError, match=r"does not hold its tokenizer.*SentencePiece"):
        load_two_tower(tmp_path / "half.npz")


def test_positions_are_resized_on_request(tmp_path, tokenizer, capsys):
    model = small_siglip()
    model.save_pretrained(tmp_path)
    network = load_two_tower(tmp_path, tokenizer=tokenizer, image_size=48)
    table = model.vision_model.embeddings.position_embedding.weight
    found = network.image_tower.trunk.embeddings.position_embedding.weight
    torch.testing.assert_close(found, resize_positions(table, 4, 6), rtol=0, atol=0)
    assert "position_embedding.weight, 4 x 4 to 6 x 6 patches" in capsys.readouterr().out
    assert network.encode_image(torch.zeros(1, 3, 48, 48, dtype=torch.uint8)).shape == (1, 16)
    # The same of a tower in a configuration, whose weights transformers would not load at another size.
    tower = TowerConfig(f"hf:{tmp_path}", pretrained=True)
    configured = TwoTower(tower, tower, tokenizer=tokenizer, image_size=48)
    torch.testing.assert_close(configured.image_tower.state_dict(), network.image_tower.state_dict(), rtol=0, atol=0)


def test_other_arguments_of_a_two_tower_model(tmp_path, tokenizer):
    small_siglip().save_pretrained(tmp_path)
    network = load_two_tower(tmp_path, tokenizer=tokenizer, context_length=5, freeze_image=True, micro_batch_size=2)
    assert network.tokenizer(["a cat"]).shape == (1, 5)
    assert network.feature_keys().keys() == {"image"}
    assert network.micro_batch_size == 2
