"""Image and text towers from open_clip: built-in names, hub or folder schemas, or a local JSON config."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import open_clip
from open_clip.timm_model import TimmModel
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from siglightning.batch import Resizing
from siglightning.models.foreign import first_words, no_foreign_code
from siglightning.models.timm_towers import timm_vit_parts
from siglightning.models.towers import (
    ImageTower,
    TextTower,
    TowerConfig,
    no_patch_tokens,
    square_side,
    unknown_name,
)
from siglightning.models.vit_parts import VitBlock, VitParts, attention_received, readable


class OpenClipImageTower(ImageTower):
    """The image half of an open_clip model, its own pooling and projection included."""

    def __init__(self, visual: nn.Module, name: str, width: int) -> None:
        super().__init__()
        preprocess: Any = visual.preprocess_cfg
        image_size: Any = visual.image_size
        self.trunk = visual
        self.width = width
        self.image_size = square_side(image_size, name)
        self.mean, self.std = tuple(preprocess["mean"]), tuple(preprocess["std"])
        self.resizing = resizing_of(preprocess)
        self.joint_space = name

    def plain_features(self, image: Tensor) -> Tensor:
        """Features ``[B, width]`` of normalised pictures ``[B, 3, H, W]``."""
        # As open_clip's own preprocessing lays them out: with colours innermost, as pictures are decoded, torch's
        # GroupNorm takes the variance as a difference of sums.
        features: Tensor = self.trunk(image.contiguous())
        return features

    def vit_parts(self) -> VitParts:
        """The parts of open_clip's own ViT and of timm's inside it; see :meth:`ImageTower.vit_parts`."""
        visual: Any = self.trunk
        if isinstance(visual, TimmModel):
            parts = timm_vit_parts(visual.trunk)
            return replace(parts, finish=lambda tokens: visual.head(parts.finish(tokens)))
        if isinstance(visual, VisionTransformer):
            return _vit_parts(visual)
        raise no_patch_tokens(f"open_clip's {type(visual).__name__}")


def resizing_of(preprocess: Mapping[str, Any]) -> Resizing:
    """As open_clip prepares pictures; a padded one (``longest``) is squashed instead."""
    is_bilinear = preprocess.get("interpolation") == "bilinear"
    is_cut = preprocess.get("resize_mode") == "shortest"
    return Resizing(1.0 if is_cut else None, "bilinear" if is_bilinear else "bicubic", resampler="pillow")


def _vit_parts(visual: Any) -> VitParts:
    """open_clip's ``VisionTransformer``: always a class token, though an attention pooling may read all tokens."""
    pool, two_poolings = visual.attn_pool, getattr(visual, "attn_pool_contrastive", None) is not None

    def probe(tokens: Tensor) -> Tensor:
        # The first query where only its output is used, else the mean over all.
        query = pool.query[:1] if visual.pool_type == "tok" else pool.query
        return attention_received(pool.attn, pool.ln_q(query).expand(len(tokens), -1, -1), pool.ln_k(tokens))

    def finish(tokens: Tensor) -> Tensor:
        pooled: Tensor = visual._pool(tokens)[0]
        return pooled if visual.proj is None else pooled @ visual.proj

    return VitParts(
        embed=visual._embeds,
        blocks=[VitBlock(block, block.ln_1, readable(block.attn)) for block in visual.transformer.resblocks],
        finish=finish,
        num_prefix=1,
        class_token=pool is None and visual.pool_type == "tok",
        probe=None if pool is None or two_poolings else probe,
    )


class OpenClipTextTower(TextTower):
    """The text half of an open_clip model, its own pooling and projection included."""

    def __init__(self, text: Any, name: str, model: str, context_length: int) -> None:
        super().__init__()
        self.trunk = text
        self.width = int(text.output_dim)
        self.context_length = context_length
        self.vocab_size = int(text.vocab_size)
        self.pad_id = int(getattr(text, "pad_id", 0))
        self.default_tokenizer = f"open_clip:{model}"
        self.joint_space = name

    def forward(self, text: Tensor) -> Tensor:
        """Features ``[B, width]`` of int64 ids ``[B, context_length]``."""
        features: Tensor = self.trunk(text)
        return features


def open_clip_image_tower(config: TowerConfig, image_size: int | None) -> OpenClipImageTower:
    """Build the image half of ``open_clip:NAME``; see :func:`siglightning.models.towers.build_image_tower`."""
    force = {} if image_size is None else {"force_image_size": image_size}
    model = create_model(config, force)
    return OpenClipImageTower(model.visual, config.name, int(model.text.output_dim))


def open_clip_text_tower(config: TowerConfig, context_length: int | None) -> OpenClipTextTower:
    """Build the text half of ``open_clip:NAME``; see :func:`siglightning.models.towers.build_text_tower`."""
    force = {} if context_length is None else {"force_context_length": context_length}
    model = create_model(config, force)
    length = int(model.context_length)
    return OpenClipTextTower(model.text, config.name, config.model, length)


def resolve_model_name(name: str) -> str:
    """The name under which open_clip knows a model; a path to a JSON config is registered first.

    Raises:
        ValueError: no such model (with the nearest names), or a file that is no open_clip config.
    """
    if ":" in name:  # open_clip's own schemas, hf-hub: and local-dir:
        return name
    if name.endswith(".json"):
        return _register(Path(name).resolve())
    if name.replace("/", "-") not in open_clip.list_models():
        raise unknown_name("open_clip model", name, open_clip.list_models(), "A path to a .json config also serves.")
    return name


@cache
def _register(path: Path) -> str:
    """Add a config file to open_clip's list of models and return its name there."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"Expected an open_clip JSON config at {str(path)!r}: {error}") from error
    if missing := {"embed_dim", "vision_cfg", "text_cfg"} - set(config):
        raise ValueError(f"{str(path)!r} is no open_clip model config: {', '.join(sorted(missing))} missing.")
    known = open_clip.get_model_config(path.stem)
    if known is not None and known != config:
        raise ValueError(f"open_clip already has another model named {path.stem!r}; rename {str(path)!r}.")
    open_clip.add_model_config(path)
    return path.stem


def create_model(config: TowerConfig, force: dict[str, Any]) -> Any:
    """The open_clip model that a tower is a half of.

    Args:
        config: name and weights.
        force: arguments of ``open_clip.create_model`` that go before those of the config.

    Raises:
        ValueError: unknown names, weights that cannot be had, a config that describes no model or would have to run
            code, or a model without a plain text tower.
    """
    name = resolve_model_name(config.model)
    tag = _weights(name, config.pretrained)
    safe = {"weights_only": True}  # whatever `kwargs` says, which may come from a file
    try:
        with no_foreign_code(), _without_word_of_random_weights():
            model = open_clip.create_model(
                name,
                pretrained=tag,
                load_weights=bool(config.pretrained),
                pretrained_text=bool(config.pretrained),  # else a random tower would fetch its text encoder's weights
                force_custom_text=True,  # one layout for all: model.visual and model.text
                **(force | config.kwargs | safe),
            )
    except Exception as error:  # a config from elsewhere may be anything
        reason = f"{type(error).__name__}: {first_words(error)}"
        raise ValueError(
            f"Tower {config.name!r} could not be built ({reason}). "
            "Check the arguments; without a connection, give `pretrained` the path of a weights file."
        ) from error
    if not isinstance(model, open_clip.CustomTextCLIP):
        raise ValueError(
            f"Tower {config.name!r}: {type(model).__name__} has no plain text tower; choose a CLIP or SigLIP."
        )
    return model


@contextmanager
def _without_word_of_random_weights() -> Iterator[None]:
    """Keep open_clip from saying that weights are random: they were asked for so, or are loaded by us afterwards."""

    def is_news(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("No pretrained weights loaded")

    root = logging.getLogger()  # on which open_clip logs
    root.addFilter(is_news)
    try:
        yield
    finally:
        root.removeFilter(is_news)


def _weights(name: str, pretrained: bool | str) -> str | None:
    """A tag of open_clip, a path, or ``None``."""
    if not pretrained or ":" in name:
        return None
    tags = open_clip.list_pretrained_tags_by_model(name)
    if pretrained is True:
        if not tags:
            raise ValueError(f"open_clip lists no weights for {name!r}; give `pretrained` the path of a weights file.")
        return str(tags[0])
    if pretrained not in tags and not Path(pretrained).is_file():
        raise unknown_name(f"weights of open_clip model {name!r}:", pretrained, tags, "Give a tag or an existing file.")
    return pretrained
