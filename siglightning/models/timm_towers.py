"""Image towers from timm."""

from dataclasses import replace
from typing import Any

import timm
import torch
from timm.layers import AttentionPoolLatent
from timm.models.vision_transformer import Block, VisionTransformer
from torch import Tensor, nn
from torch.nn import functional

from siglightning.models.towers import ImageTower, TowerConfig, no_patch_tokens, square_side, unknown_name
from siglightning.models.vit_parts import VitBlock, VitParts, latent_attention, readable


class TimmImageTower(ImageTower):
    """A timm model without its classifier; features are pooled as the model itself pools them."""

    def __init__(self, model: Any, image_size: int, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        self.trunk = model
        # Some models widen their features between pooling and classifier; that wider layer stays.
        self.width = int(getattr(model, "head_hidden_size", None) or model.num_features)
        self.image_size, self.mean, self.std = image_size, mean, std

    def plain_features(self, image: Tensor) -> Tensor:
        """Features ``[B, width]`` of normalised pictures ``[B, 3, H, W]``."""
        # Colours innermost, as convolutions like it: 1.7 times as fast for EfficientNet-Lite0 on a CPU. Not where
        # GroupNorm evaluates: torch then takes the variance as a difference of sums, 1e-5 off in the embeddings.
        innermost = self.training or not any(isinstance(layer, nn.GroupNorm) for layer in self.trunk.modules())
        layout = torch.channels_last if innermost else torch.contiguous_format
        features: Tensor = self.trunk(image.contiguous(memory_format=layout))
        return features

    def vit_parts(self) -> VitParts:
        """The parts of a plain ViT; see :meth:`siglightning.models.towers.ImageTower.vit_parts`."""
        parts = timm_vit_parts(self.trunk)
        return replace(parts, embed=lambda image: parts.embed(image.contiguous(memory_format=torch.channels_last)))


def timm_vit_parts(trunk: Any) -> VitParts:
    """The parts of timm's ``VisionTransformer``: class token, attention pooling or mean.

    Raises:
        ValueError: a model of another class. Models of its kin (EVA, DINOv3) hand positions to every block.
    """
    if type(trunk) is not VisionTransformer:
        raise no_patch_tokens(f"timm's {type(trunk).__name__}")
    pool, prefix = trunk.attn_pool, trunk.num_prefix_tokens

    def embed(image: Tensor) -> Tensor:
        tokens: Tensor = trunk.norm_pre(trunk.patch_drop(trunk._pos_embed(trunk.patch_embed(image))))
        return tokens

    def probe(tokens: Tensor) -> Tensor:
        skipped = 0 if trunk.pool_include_prefix else prefix
        return functional.pad(latent_attention(pool, trunk.norm(tokens)[:, skipped:]), (skipped, 0))

    return VitParts(
        embed=embed,
        blocks=[_block(block) for block in trunk.blocks],
        finish=lambda tokens: trunk.forward_head(trunk.norm(tokens)),
        num_prefix=prefix,
        class_token=trunk.global_pool == "token",
        probe=probe if isinstance(pool, AttentionPoolLatent) else None,
    )


def _block(block: Any) -> VitBlock:
    if type(block) is not Block:  # normalised after, or parallel to, the attention
        return VitBlock(block, nn.Identity(), None)
    return VitBlock(block, block.norm1, readable(block.attn))


def timm_image_tower(config: TowerConfig, image_size: int | None) -> TimmImageTower:
    """Build ``timm:NAME``; see :func:`siglightning.models.towers.build_image_tower`."""
    architecture, _, tag = config.model.partition(".")
    if not timm.is_model(architecture):
        raise unknown_name("timm model", config.model, timm.list_models())
    tags = [name.partition(".")[2] for name in timm.list_pretrained(f"{architecture}.*")]
    if tag and tag not in tags:
        raise unknown_name(f"tag of timm model {architecture!r}:", tag, tags)
    model = _create(config, image_size)
    data = timm.data.resolve_model_data_config(model)
    size = image_size or config.kwargs.get("img_size") or square_side(data["input_size"][1:], config.name)
    return TimmImageTower(model, int(size), tuple(data["mean"]), tuple(data["std"]))


def _create(config: TowerConfig, image_size: int | None) -> Any:
    if "checkpoint_path" in config.kwargs:  # which some releases of timm unpickle, code and all
        raise ValueError(f"Tower {config.name!r} has a `checkpoint_path`; give `pretrained` that path instead.")
    kwargs: dict[str, Any] = {"num_classes": 0, **config.kwargs}
    if isinstance(config.pretrained, str):
        # The overlay, not `checkpoint_path`: timm then drops the classifier of the file by itself.
        kwargs |= {"pretrained": True, "pretrained_cfg_overlay": {"file": config.pretrained}}
    else:
        kwargs["pretrained"] = config.pretrained
    if image_size is None or "img_size" in kwargs:
        return _create_or_explain(config, kwargs)
    try:
        return timm.create_model(config.model, img_size=image_size, **kwargs)
    except TypeError:  # convolutional models take no img_size because they take any size
        return _create_or_explain(config, kwargs)


def _create_or_explain(config: TowerConfig, kwargs: dict[str, Any]) -> Any:
    try:
        return timm.create_model(config.model, **kwargs)
    except Exception as error:  # a file of weights may be anything
        reason = str(error).strip().partition("\n")[0]
        raise ValueError(
            f"Tower {config.name!r} could not be built with {kwargs}: {reason}. "
            "Check the keyword arguments; without a connection, give `pretrained` the path of a weights file."
        ) from error
