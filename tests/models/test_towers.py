"""Towers by name: the same numbers as the libraries they come from, and one-line errors for what does not exist."""

import json

import open_clip
import pytest
import timm
import torch
import transformers
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from torch.nn import functional

from siglightning.models import TowerConfig, TwoTower, build_image_tower, build_text_tower
from siglightning.models.local_towers import LocalTextTransformer, ResidualConv

IMAGE = torch.randint(0, 256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
TEXT = torch.randint(3, 50, (3, 8), generator=torch.Generator().manual_seed(1))
TEXT[0, 5:] = 1  # padding


@pytest.fixture(scope="module")
def tokenizer_file(tmp_path_factory):
    """A tokenizer small enough for towers with 50 embeddings."""
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    FastTokenizer(WordLevel({"<unk>": 0, "<pad>": 1, "cat": 2}, unk_token="<unk>")).save(str(path))
    return str(path)


def with_mean_and_std(mean, std):
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (mean, std))
    return (IMAGE / 255 - mean) / std


def siglip_folder(path):
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"vocab_size": 50, "max_position_embeddings": 8, "projection_size": 16, "pad_token_id": 1}
    config = transformers.SiglipConfig(
        text_config=shared | text | {"bos_token_id": 2, "eos_token_id": 1},
        vision_config=shared | {"image_size": 32, "patch_size": 16},
    )
    torch.manual_seed(2)
    model = transformers.SiglipModel(config).eval()
    for parameter in model.parameters():  # initial biases are zero, which would hide a missing one
        torch.nn.init.normal_(parameter, std=0.3)
    model.save_pretrained(path)
    return model


def test_siglip_of_transformers_is_reproduced(tmp_path, tokenizer_file):
    model = siglip_folder(tmp_path)
    tower = TowerConfig(f"hf:{tmp_path}", pretrained=True)
    network = TwoTower(tower, tower, tokenizer=tokenizer_file).eval()
    reference = model(pixel_values=with_mean_and_std((0.5,) * 3, (0.5,) * 3), input_ids=TEXT)
    image_embeds, text_embeds = network(IMAGE, TEXT)
    torch.testing.assert_close(image_embeds, reference.image_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(text_embeds, reference.text_embeds, rtol=0, atol=1e-6)
    assert (network.embed_dim, network.image_size, network.context_length) == (16, 32, 8)


def test_clip_of_transformers_is_reproduced_with_its_projections(tmp_path, tokenizer_file):
    shared = {"intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    text = {"hidden_size": 8, "vocab_size": 50, "max_position_embeddings": 8, "bos_token_id": 2, "eos_token_id": 49}
    config = transformers.CLIPConfig(
        text_config=shared | text | {"pad_token_id": 1},
        vision_config=shared | {"hidden_size": 16, "image_size": 32, "patch_size": 16},
        projection_dim=12,
    )
    model = transformers.CLIPModel(config).eval()
    model.save_pretrained(tmp_path)
    tower = TowerConfig(f"hf:{tmp_path}", pretrained=True)
    network = TwoTower(tower, tower, tokenizer=tokenizer_file).eval()
    pixels = with_mean_and_std((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
    reference = model(pixel_values=pixels, input_ids=TEXT)
    image_embeds, text_embeds = network(IMAGE, TEXT)
    torch.testing.assert_close(image_embeds, reference.image_embeds, rtol=0, atol=1e-6)
    torch.testing.assert_close(text_embeds, reference.text_embeds, rtol=0, atol=1e-6)
    assert network.embed_dim == 12


def test_single_encoders_of_transformers_pool_real_tokens(tmp_path, tokenizer_file):
    """BERT and ViT: mean over the tokens that are no padding; the ViT's own pooler."""
    shared = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = transformers.BertModel(transformers.BertConfig(vocab_size=50, pad_token_id=1, **shared)).eval()
    vit = transformers.ViTModel(transformers.ViTConfig(image_size=32, patch_size=16, **shared)).eval()
    bert.save_pretrained(tmp_path / "bert")
    vit.save_pretrained(tmp_path / "vit")
    image = build_image_tower(TowerConfig(f"hf:{tmp_path / 'vit'}", pretrained=True)).eval()
    text = build_text_tower(TowerConfig(f"hf:{tmp_path / 'bert'}", pretrained=True), None, 0, 0).eval()
    pixels = with_mean_and_std((0.5,) * 3, (0.5,) * 3)
    torch.testing.assert_close(image(pixels), vit(pixel_values=pixels).pooler_output)
    short = bert(input_ids=TEXT[:1, :5]).last_hidden_state.mean(dim=1)  # padding cut off instead of masked
    torch.testing.assert_close(text(TEXT)[:1], short, rtol=0, atol=1e-6)


def test_preprocessor_file_of_a_checkpoint_sets_mean_and_std(tmp_path):
    siglip_folder(tmp_path)
    means = {"image_mean": [0.1, 0.2, 0.3], "image_std": [0.4, 0.5, 0.6]}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(means))
    tower = build_image_tower(TowerConfig(f"hf:{tmp_path}"))
    assert (tower.mean, tower.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


def test_folder_with_a_config_only_starts_at_random(tmp_path):
    siglip_folder(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    assert build_image_tower(TowerConfig(f"hf:{tmp_path}")).width == 16
    with pytest.raises(ValueError, match=r"No weights for tower .*`pretrained: false` to start at random"):
        build_image_tower(TowerConfig(f"hf:{tmp_path}", pretrained=True))


@pytest.fixture(scope="module")
def open_clip_config(tmp_path_factory):
    """A SigLIP in open_clip's manner: attention pooling on the image side, last position on the text side."""
    path = tmp_path_factory.mktemp("open_clip") / "tiny_siglip.json"
    vision = {"image_size": 32, "patch_size": 16, "width": 16, "layers": 2, "head_width": 8, "attentional_pool": True}
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 2, "pool_type": "last"}
    text |= {"no_causal_mask": True, "proj_bias": True}
    vision |= {"attn_pooler_queries": 1, "attn_pooler_heads": 2, "pool_type": "tok"}
    config = {"embed_dim": 16, "init_logit_bias": -10, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    path.write_text(json.dumps(config))
    return path


def test_open_clip_siglip_is_reproduced_from_a_config_file(tmp_path, open_clip_config, tokenizer_file):
    open_clip.add_model_config(open_clip_config)
    torch.manual_seed(3)
    model = open_clip.create_model("tiny_siglip").eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    tower = TowerConfig(f"open_clip:{open_clip_config}", pretrained=str(tmp_path / "weights.pt"))
    network = TwoTower(tower, tower, tokenizer=tokenizer_file).eval()
    preprocess = model.visual.preprocess_cfg
    pixels = with_mean_and_std(preprocess["mean"], preprocess["std"])
    image_embeds, text_embeds = network(IMAGE, TEXT)
    torch.testing.assert_close(image_embeds, model.encode_image(pixels, normalize=True), rtol=0, atol=1e-6)
    torch.testing.assert_close(text_embeds, model.encode_text(TEXT, normalize=True), rtol=0, atol=1e-6)
    # The same weights by hand, which is how a plain training loop around open_clip's model is compared with ours.
    network = TwoTower(
        f"open_clip:{open_clip_config}", f"open_clip:{open_clip_config}", tokenizer=tokenizer_file
    ).eval()
    network.image_tower.trunk.load_state_dict(model.visual.state_dict())
    network.text_tower.trunk.load_state_dict(model.text.state_dict())
    assert torch.equal(network(IMAGE, TEXT)[1], text_embeds)


def test_open_clip_towers_take_other_sizes(open_clip_config):
    name = f"open_clip:{open_clip_config}"
    assert build_image_tower(TowerConfig(name), image_size=48)(torch.zeros(1, 3, 48, 48)).shape == (1, 16)
    text = build_text_tower(TowerConfig(name), context_length=6, vocab_size=0, pad_id=0)
    assert text(TEXT[:, :6]).shape == (3, 16)
    assert text.context_length == 6


def test_open_clip_name_clash_is_refused(tmp_path, open_clip_config):
    other = json.loads(open_clip_config.read_text()) | {"embed_dim": 32}
    (tmp_path / "ViT-B-32.json").write_text(json.dumps(other))
    with pytest.raises(ValueError, match="another model named 'ViT-B-32'; rename"):
        build_image_tower(TowerConfig(f"open_clip:{tmp_path / 'ViT-B-32.json'}"))


def test_different_families_are_projected(open_clip_config, tokenizer_file):
    network = TwoTower("local:conv", f"open_clip:{open_clip_config}", tokenizer=tokenizer_file, image_size=32)
    assert network.embed_dim == network.image_tower.width == 256
    assert network.text_projection.weight.shape == (256, 16)
    same = TwoTower(f"open_clip:{open_clip_config}", f"open_clip:{open_clip_config}", 20, tokenizer=tokenizer_file)
    assert (same.image_projection.weight.shape, same.text_projection.weight.shape) == ((20, 16), (20, 16))


@pytest.mark.parametrize("name", ["resnet10t", "vit_tiny_patch16_224", "mobilenetv3_small_050"])
def test_timm_is_reproduced_from_a_weights_file(tmp_path, name):
    """The file still holds the classifier; mobilenet widens its features behind the pooling."""
    torch.manual_seed(4)
    depth = {"depth": 1} if name.startswith("vit") else {}
    size = {"img_size": 32} if depth else {}
    model = timm.create_model(name, **size, **depth).eval()
    torch.save(model.state_dict(), tmp_path / "weights.pt")
    config = TowerConfig(f"timm:{name}", pretrained=str(tmp_path / "weights.pt"), kwargs=depth)
    tower = build_image_tower(config, image_size=32).eval()
    pixels = with_mean_and_std(tower.mean, tower.std)
    expected = model.forward_head(model.forward_features(pixels), pre_logits=True)
    torch.testing.assert_close(tower(pixels), expected, rtol=0, atol=1e-6)
    assert tower.width == expected.shape[1]
    assert (tower.mean, tower.std) == (model.default_cfg["mean"], model.default_cfg["std"])
    assert tower.image_size == 32


def test_config_that_names_no_tokenizer_asks_for_one(open_clip_config):
    with pytest.raises(ValueError, match="names no tokenizer; give `tokenizer`"):
        TwoTower(f"open_clip:{open_clip_config}", f"open_clip:{open_clip_config}")


def test_unreachable_hub_says_to_give_a_path(monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match="Check the name and the connection, or give the path of a downloaded copy"):
        build_image_tower(TowerConfig("hf:nobody/no-such-model"))
    with pytest.raises(ValueError, match=r"could not be built.*without a connection, give `pretrained` the path"):
        build_image_tower(TowerConfig("timm:vit_tiny_patch16_224", pretrained=True, kwargs={"depth": 1}))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("timm:vit_tiny_patch16_22", r"Unknown timm model .*Nearest: vit_tiny_patch16_224"),
        ("timm:vit_tiny_patch16_224.augreg", r"Unknown tag .*Nearest: augreg_in21k"),
        ("open_clip:ViT-B-16-SigLlP", r"Unknown open_clip model .*Nearest: ViT-B-16-SigLIP,"),
        ("open_clip:/no/such.json", r"Expected an open_clip JSON config at '/no/such.json'"),
        ("hf:/no/such", r"no folder '/no/such'; give one that holds config.json"),
        ("local:con", r"Nearest: local:conv"),
        ("locl:conv", r"Unknown tower scheme 'locl'. Nearest: local"),
        ("vit_tiny_patch16_224", r"Unknown tower scheme .*SCHEME:NAME"),
    ],
)
def test_wrong_names_are_refused_before_any_weight_is_made(monkeypatch, name, message):
    monkeypatch.setattr(torch.nn.Module, "__init__", lambda *_, **__: pytest.fail("a module was built"))
    with pytest.raises(ValueError, match=message):
        build_image_tower(TowerConfig(name))


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match=r"Unknown argument of local:conv: 'widht'. Nearest: width"):
        build_image_tower(TowerConfig("local:conv", kwargs={"widht": 8}))
    with pytest.raises(ValueError, match="could not be built"):
        build_image_tower(TowerConfig("timm:resnet10t", kwargs={"no_such_argument": 1}))
    with pytest.raises(ValueError, match="timm has no text towers"):
        build_text_tower(TowerConfig("timm:resnet10t"), None, 0, 0)
    with pytest.raises(ValueError, match=r"image_size 66 is no multiple"):
        build_image_tower(TowerConfig("local:conv"), image_size=66)


def local_text(**kwargs):
    torch.manual_seed(5)
    sizes = {"vocab_size": 50, "context_length": 8, "pad_id": 1, "width": 16, "depth": 2, "heads": 2}
    return LocalTextTransformer(**(sizes | kwargs)).eval()


@pytest.mark.parametrize("pooling", ["mean", "last", "map"])
@pytest.mark.parametrize("causal", [False, True])
def test_padding_is_invisible_when_masked_and_read_when_not(pooling, causal):
    with torch.no_grad():
        masked = local_text(pooling=pooling, causal=causal)
        torch.testing.assert_close(masked(TEXT)[:1], masked(TEXT[:1, :5]))
        reading = local_text(pooling=pooling, causal=causal, mask_padding=False)
        assert not torch.allclose(reading(TEXT)[:1], reading(TEXT[:1, :5]))


def test_a_token_without_content_does_not_turn_a_mean():
    """A token that training never met stays near zero; normalised before pooling it would weigh like any other."""
    tower = local_text(pooling="mean", depth=0)
    with torch.no_grad():
        tower.position_embedding.zero_()
        tower.token_embedding.weight.mul_(100)
        tower.token_embedding.weight[2] *= 0.01
        with_silent_token = tower(torch.cat([TEXT[1:, :7], torch.full((2, 1), 2)], dim=1))
        cosine = functional.cosine_similarity(with_silent_token, tower(TEXT[1:, :7]))
    assert cosine.min() > 0.999  # 1 - 0.01^2 is expected; a token as loud as the others would leave .93


def test_without_a_bias_in_its_norm_a_bag_of_words_is_linear_but_for_its_length():
    tower, words = local_text(depth=0, norm_bias=False), torch.tensor([[2], [3], [4]])
    assert tower.norm.bias is None
    with torch.no_grad():
        tower.position_embedding.zero_()
        tower.token_embedding.weight.mul_(100)  # beside the epsilon of the norm
        spread = tower.token_embedding(words).std(dim=-1, correction=0)
        parts = tower(words) * spread  # what stood before the norm, centred
        whole = tower(words.T)[0]
    torch.testing.assert_close(functional.normalize(whole, dim=0), functional.normalize(parts.sum(0), dim=0))


def test_causal_tokens_do_not_see_what_follows():
    for mask_padding in (True, False):
        tower = local_text(pooling="last", causal=True, mask_padding=mask_padding)
        seen = {}
        tower.norm.register_forward_hook(lambda _, __, output, seen=seen: seen.update(tokens=output))
        changed = TEXT[1:].clone()
        changed[:, 5:] = 7
        tower(TEXT[1:])
        before = seen["tokens"]
        tower(changed)
        torch.testing.assert_close(seen["tokens"][:, :5], before[:, :5])
        assert not torch.allclose(seen["tokens"][:, 5:], before[:, 5:])


def test_empty_caption_and_bottleneck_give_finite_features():
    tower = local_text(bottleneck=4)
    assert torch.isfinite(tower(torch.full((1, 8), 1))).all()
    assert tower.token_embedding.table.weight.shape == (50, 4)
    table = tower.token_embedding.table.weight @ tower.token_embedding.expand.weight.T
    torch.testing.assert_close(tower.token_embedding(TEXT), table[TEXT])


@pytest.mark.parametrize("bottleneck", [0, -1, 17])
def test_a_bottleneck_wider_than_the_features_is_refused(bottleneck):
    with pytest.raises(ValueError, match=f"expected 1 to 16, the width of the text tower, got {bottleneck}"):
        local_text(bottleneck=bottleneck)
    assert local_text(bottleneck=16).token_embedding.table.weight.shape == (50, 16)


@pytest.mark.parametrize(
    ("config", "close"),
    [  # with colours innermost 4e-4 and 1e-5: torch's GroupNorm then loses what is small beside the mean
        (TowerConfig("local:conv", kwargs={"width": 8, "depths": [1, 1]}), 3e-5),
        (TowerConfig("timm:resnetv2_18", kwargs={"layers": [0, 1, 1, 1], "norm_layer": "groupnorm"}), 4e-6),
    ],
)
def test_flat_pictures_are_evaluated_as_exactly_as_fp32_can(config, close):
    torch.manual_seed(0)
    tower = build_image_tower(config, image_size=64).eval()
    pixels = 1 + 0.1 * torch.randn(4, 3, 64, 64)
    with torch.no_grad():
        next(layer for layer in tower.modules() if isinstance(layer, torch.nn.Conv2d)).weight.abs_()
        found = functional.normalize(tower(pixels).double())
        exact = functional.normalize(tower.double()(pixels.double()))
    assert (found - exact).abs().max() < close


def test_conv_tower_treats_samples_alone_and_its_blocks_start_as_the_identity():
    tower = build_image_tower(TowerConfig("local:conv", kwargs={"width": 8, "depths": [2, 1]}), image_size=32)
    pixels = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(tower(pixels)[2:3], tower(pixels[2:3]))
    blocks = [layer for layer in tower.layers if isinstance(layer, ResidualConv)]
    assert len(blocks) == 3
    for block in blocks:
        maps = torch.randn(2, block.conv1.in_channels, 4, 4)
        assert torch.equal(block(maps), maps)
        torch.nn.init.normal_(block.conv2.weight)
        assert not torch.allclose(block(maps), maps)
