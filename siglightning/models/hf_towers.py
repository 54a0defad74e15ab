"""Image and text towers from transformers: two-tower models (SigLIP, CLIP) or single encoders, by name or folder."""

import math
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from siglightning.models.hf_checkpoints import (
    TWO_TOWER_TYPES,
    create_model,
    random_model,
    read_patches,
    read_preparation,
    read_settings,
)
from siglightning.models.positions import load_resized
from siglightning.models.towers import (
    ImageTower,
    TextTower,
    TowerConfig,
    no_patch_tokens,
    square_side,
)
from siglightning.models.vit_parts import VitBlock, VitParts, attention_received, readable

_ALIKE = 64  # captions of like length that are encoded together


class HfImageTower(ImageTower):
    """An image encoder of transformers, pooled as the model itself pools (SigLIP: its attention-pooling head)."""

    def __init__(self, trunk: nn.Module, projection: nn.Module | None, width: int, image_size: int) -> None:
        super().__init__()
        self.trunk = trunk
        self.projection = projection or nn.Identity()
        self.width, self.image_size = width, image_size

    def plain_features(self, image: Tensor) -> Tensor:
        """Features ``[B, width]`` of normalised pictures ``[B, 3, H, W]``."""
        output = self.trunk(pixel_values=image)
        pooled = output.get("pooler_output")
        if pooled is None:  # encoders without a pooler: mean over tokens or positions
            pooled = output.last_hidden_state.mean(dim=1)
        features: Tensor = self.projection(pooled.flatten(1))
        return features

    def vit_parts(self) -> VitParts:
        """The parts of SigLIP, CLIP and ViT; see :meth:`siglightning.models.towers.ImageTower.vit_parts`."""
        trunk: Any = self.trunk
        match trunk.config.model_type:
            case "siglip_vision_model":
                return _siglip_parts(trunk)
            case "clip_vision_model":
                blocks = [_block(layer, "layer_norm1", "self_attn") for layer in trunk.encoder.layers]
                return VitParts(
                    embed=lambda image: trunk.pre_layrnorm(trunk.embeddings(image)),  # spelt so in transformers
                    blocks=blocks,
                    finish=lambda tokens: self.projection(trunk.post_layernorm(tokens[:, 0, :])),
                    num_prefix=1,
                    class_token=True,
                )
            case "vit":
                return _vit_parts(trunk)
            case other:
                raise no_patch_tokens(f"a model of type {other!r}")


class HfNaflexTower(HfImageTower):
    """The image half of SigLIP 2 NaFlex, which takes pictures of any size in whole patches.

    Its positions are resized to the grid of each picture by the model itself.
    """

    def plain_features(self, image: Tensor) -> Tensor:
        """Features ``[B, width]`` of normalised pictures ``[B, 3, H, W]``; the patch must divide both sides."""
        side = int(self.trunk.config.patch_size)  # type: ignore[union-attr, arg-type]  # transformers is untyped
        batch, channels, high, wide = image.shape
        grid = (high // side, wide // side)
        patches = image.reshape(batch, channels, grid[0], side, grid[1], side).permute(0, 2, 4, 3, 5, 1)
        patches = patches.reshape(batch, grid[0] * grid[1], -1)
        output = self.trunk(
            pixel_values=patches,
            pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long, device=image.device),
            spatial_shapes=torch.tensor([grid] * batch),  # on the CPU, where the model asks for the numbers
        )
        features: Tensor = self.projection(output.pooler_output)
        return features


class HfTextTower(TextTower):
    """A text encoder of transformers.

    SigLIP and CLIP read padding as part of the text and pool one position; other encoders get an attention mask and
    the mean over the tokens that are not padding.
    """

    def __init__(self, trunk: nn.Module, projection: nn.Module | None, *, mask_padding: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.projection = projection or nn.Identity()
        self.mask_padding = mask_padding

    def forward(self, text: Tensor) -> Tensor:
        """Features ``[B, width]`` of int64 ids ``[B, context_length]``."""
        if not self.mask_padding:
            pooled = self.trunk(input_ids=text).pooler_output
        elif torch.is_grad_enabled():
            pooled = self._mean_over_tokens(text)
        else:
            pooled = self._by_length(text)
        features: Tensor = self.projection(pooled)
        return features

    def _mean_over_tokens(self, text: Tensor) -> Tensor:
        mask = text != self.pad_id
        hidden = self.trunk(input_ids=text, attention_mask=mask.long()).last_hidden_state
        weight = mask.to(hidden.dtype).unsqueeze(-1)
        mean: Tensor = (hidden * weight).sum(1) / weight.sum(1).clamp(min=1)
        return mean

    def _by_length(self, text: Tensor) -> Tensor:
        """The same, captions of like length together and without their padding: most captions are short.

        Asks the device for the lengths, which training does not wait for; embedding and evaluation may.
        """
        lengths = (text != self.pad_id).sum(1).clamp(min=1).cpu()
        order = lengths.argsort(stable=True)
        parts = torch.split(order, _ALIKE)
        found = torch.cat([self._mean_over_tokens(text[rows, : int(lengths[rows[-1]])]) for rows in parts])
        return found[order.argsort()]


def hf_image_tower(config: TowerConfig, image_size: int | None) -> HfImageTower:
    """Build the image part of ``hf:NAME``; see :func:`siglightning.models.towers.build_image_tower`.

    Weights for another image size keep everything but their position embeddings, which are resized.
    """
    settings = read_settings(config)
    if image_size in (None, _own_size(settings, config)):
        return _image_tower(config, settings, create_model(config, settings))
    if settings.model_type == "siglip2":
        tower = _image_tower(config, settings, create_model(config, settings))
        tower.image_size = _whole_patches(int(settings.vision_config.patch_size), image_size, config.name)
        return tower
    resized = read_settings(config)
    (resized.vision_config if resized.model_type in TWO_TOWER_TYPES else resized).image_size = image_size
    tower = _image_tower(config, resized, random_model(config, resized))
    if config.pretrained:
        load_resized(tower, _image_tower(config, settings, create_model(config, settings)).state_dict())
    return tower


def _image_tower(config: TowerConfig, settings: Any, model: Any) -> HfImageTower:
    kind = settings.model_type
    side = _own_size(settings, config)
    if kind in TWO_TOWER_TYPES:
        projection = getattr(model, "visual_projection", None)
        width = settings.projection_dim if projection is not None else settings.vision_config.hidden_size
        make = HfNaflexTower if kind == "siglip2" else HfImageTower
        tower = make(model.vision_model, projection, width, side)
        tower.joint_space = config.name
    else:
        width = getattr(settings, "hidden_size", None) or settings.hidden_sizes[-1]
        tower = HfImageTower(model, None, width, side)
    tower.mean, tower.std, tower.resizing = read_preparation(config, kind)
    return tower


def _own_size(settings: Any, config: TowerConfig) -> int:
    """Side of the pictures that a model was made for; of NaFlex, which takes any, the square with as many patches."""
    if settings.model_type == "siglip2":
        return math.isqrt(read_patches(config, settings)) * int(settings.vision_config.patch_size)
    vision = settings.vision_config if settings.model_type in TWO_TOWER_TYPES else settings
    return square_side(getattr(vision, "image_size", None) or 224, config.name)


def _whole_patches(patch: int, image_size: int | None, name: str) -> int:
    if not image_size or image_size % patch:
        raise ValueError(f"Tower {name!r} has patches of {patch} pixels; image_size {image_size} is no multiple of it.")
    return image_size


def _block(layer: Any, norm: str, attention: str) -> VitBlock:
    run = partial(layer, attention_mask=None)
    return VitBlock(run, getattr(layer, norm), readable(getattr(layer, attention)))


def _siglip_parts(trunk: Any) -> VitParts:
    """SigLIP: no class token; a probe attends to the normalised tokens (a model without that head: their mean)."""

    def probe(tokens: Tensor) -> Tensor:
        query = trunk.head.probe.expand(len(tokens), -1, -1)
        return attention_received(trunk.head.attention, query, trunk.post_layernorm(tokens))

    def finish(tokens: Tensor) -> Tensor:
        tokens = trunk.post_layernorm(tokens)
        pooled: Tensor = trunk.head(tokens) if trunk.use_head else tokens.mean(dim=1)
        return pooled

    blocks = [_block(layer, "layer_norm1", "self_attn") for layer in trunk.encoder.layers]
    return VitParts(trunk.embeddings, blocks, finish, probe=probe if trunk.use_head else None)


def _vit_parts(trunk: Any) -> VitParts:
    """ViT: its pooler reads the class token; without a pooler the mean over all tokens is taken."""

    def finish(tokens: Tensor) -> Tensor:
        tokens = trunk.layernorm(tokens)
        pooled: Tensor = tokens.mean(dim=1) if trunk.pooler is None else trunk.pooler(tokens)
        return pooled

    blocks = [_block(layer, "layernorm_before", "attention") for layer in trunk.layers]
    return VitParts(trunk.embeddings, blocks, finish, num_prefix=1, class_token=trunk.pooler is not None)


def hf_text_tower(config: TowerConfig, context_length: int | None) -> HfTextTower:
    """Build the text part of ``hf:NAME``; see :func:`siglightning.models.towers.build_text_tower`."""
    settings = read_settings(config)
    two_tower = settings.model_type in TWO_TOWER_TYPES
    text = settings.text_config if two_tower else settings
    longest = int(text.max_position_embeddings)
    if context_length is not None and context_length > longest:
        raise ValueError(f"Tower {config.name!r} reads at most {longest} tokens, got context_length {context_length}.")
    model = create_model(config, settings)
    if two_tower:
        projection = getattr(model, "text_projection", None)
        tower = HfTextTower(model.text_model, projection, mask_padding=False)
        own_head = getattr(text, "projection_size", text.hidden_size)  # SigLIP's text head is part of its trunk
        tower.width = int(settings.projection_dim if projection is not None else own_head)
        tower.joint_space = config.name
    else:
        tower = HfTextTower(model, None, mask_padding=True)
        tower.width = int(text.hidden_size)
    tower.context_length = context_length or min(longest, 64 if settings.model_type != "clip" else 77)
    tower.vocab_size = int(text.vocab_size)
    tower.pad_id = int(text.pad_token_id or 0)
    tower.default_tokenizer = f"hf:{config.model}"
    return tower
