"""Small random vision transformers of the three libraries, in every way they pool."""

import json

import pytest
import torch
import transformers

from siglightning.models import TowerConfig, build_image_tower

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2}
SIZE = {"image_size": 32, "patch_size": 8}  # 16 patches
TIMM = {"img_size": 32, "patch_size": 8, "embed_dim": 16, "depth": 3, "num_heads": 2}
OPEN_CLIP = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 3, "head_width": 8}


def _hf(config, folder):
    config.save_pretrained(folder)
    return TowerConfig(f"hf:{folder}")


def _timm(**kwargs):
    return TowerConfig("timm:vit_tiny_patch16_224", kwargs=TIMM | kwargs)


def _open_clip(vision, folder):
    text = {"context_length": 8, "vocab_size": 50, "width": 16, "heads": 2, "layers": 1}
    path = folder / f"vit_{'_'.join(str(value) for value in vision.values())}.json".replace("/", "-")
    config = {"embed_dim": 12, "custom_text": True, "vision_cfg": vision, "text_cfg": text}
    path.write_text(json.dumps(config))
    return TowerConfig(f"open_clip:{path}")


def _clip(folder):
    text = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = SMALL | SIZE | {"attention_dropout": 0.1}
    return _hf(transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=12), folder)


def _siglip(folder, **vision):
    text = SMALL | {"vocab_size": 50, "max_position_embeddings": 8}
    return _hf(transformers.SiglipConfig(text_config=text, vision_config=SMALL | SIZE | vision), folder)


POOL = {"attentional_pool": True, "attn_pooler_heads": 2}
VITS = {
    "hf siglip": _siglip,
    "hf siglip without head": lambda folder: _siglip(folder, vision_use_head=False),
    "hf clip": _clip,
    "hf vit": lambda folder: _hf(transformers.ViTConfig(**SMALL, **SIZE, hidden_dropout_prob=0.1), folder),
    "timm class token": lambda folder: _timm(drop_path_rate=0.2, proj_drop_rate=0.1, qkv_bias=False),
    "timm registers, qk norm": lambda folder: _timm(reg_tokens=2, qk_norm=True, no_embed_class=True, pre_norm=True),
    "timm mean": lambda folder: _timm(global_pool="avg"),
    "timm map": lambda folder: _timm(global_pool="map", class_token=False),
    "timm map, registers": lambda folder: _timm(global_pool="map", class_token=False, reg_tokens=1),
    "open_clip": lambda folder: _open_clip(OPEN_CLIP | {"patch_dropout": 0}, folder),
    "open_clip mean": lambda folder: _open_clip(OPEN_CLIP | {"pool_type": "avg"}, folder),
    "open_clip pooler": lambda folder: _open_clip(OPEN_CLIP | POOL | {"attn_pooler_queries": 4}, folder),
    "open_clip pooler, mean": lambda folder: _open_clip(
        OPEN_CLIP | POOL | {"attn_pooler_queries": 3, "pool_type": "avg"}, folder
    ),
    "open_clip qk norm": lambda folder: _open_clip(OPEN_CLIP | {"qk_norm": True}, folder),
    "open_clip of timm": lambda folder: _open_clip(
        {"image_size": 160, "timm_model_name": "test_vit3", "timm_pool": "map", "timm_proj": "linear"}, folder
    ),
}


OTHERS = {
    "no vit of open_clip": lambda folder: _open_clip({"image_size": 64, "layers": [1, 1, 1, 1], "width": 8}, folder),
    "no vit of transformers": lambda folder: _hf(transformers.ResNetConfig(hidden_sizes=[8], depths=[1]), folder),
}


@pytest.fixture
def make_vit(tmp_path):
    """A function from a name of `VITS` or `OTHERS` to a tower with random weights, biases and scales included."""

    def make(name):
        torch.manual_seed(3)
        tower = build_image_tower((VITS | OTHERS)[name](tmp_path))
        for parameter in tower.parameters():  # initial biases are zero, which would hide a missing one
            torch.nn.init.normal_(parameter, std=0.3)
        return tower.eval()

    return make


@pytest.fixture(params=VITS)
def vit(request, make_vit):
    return make_vit(request.param)


@pytest.fixture(params=[name for name in VITS if name != "open_clip of timm"])
def vit_of_two_sizes(request, tmp_path):
    """A tower for pictures of 32 pixels, 16 patches, and the same for 48 pixels, 36 patches."""
    config = VITS[request.param](tmp_path)
    small = build_image_tower(config)
    if "img_size" in config.kwargs:
        config.kwargs["img_size"] = 48
    return small, build_image_tower(config, 48)
