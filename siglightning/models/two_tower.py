"""The two-tower model: pictures and captions to unit vectors in one space, with t' and b."""

import math
from collections.abc import Callable
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional
from typing_extensions import override

from siglightning.models.compiled import Compile
from siglightning.models.feature_keys import text_key
from siglightning.models.image_encoder import ImageEncoder
from siglightning.models.lora import Lora
from siglightning.models.saliency import SaliencyMasking
from siglightning.models.tokenizers import Tokenizer
from siglightning.models.towers import (
    TextTower,
    TowerConfig,
    build_text_tower,
)


class TwoTower(ImageEncoder):
    """An image tower and a text tower with projections into one space.

    Both towers from one checkpoint family keep their own projections, provided that ``embed_dim`` agrees. Otherwise
    each is projected linearly to ``embed_dim``; with ``embed_dim=None`` the image tower's own features are the space
    and only the captions are projected (as suits a frozen image tower).

    Args:
        image_tower: name or config, see :class:`~siglightning.models.towers.TowerConfig`.
        text_tower: name or config.
        embed_dim: dimensions of the embedding space, or ``None`` for those of the towers.
        tokenizer: source, see :class:`~siglightning.models.tokenizers.Tokenizer`; ``None`` takes the text tower's own.
        context_length: tokens a caption; ``None`` leaves the tower's own (``local:`` towers: 32).
        image_size: side of the square input in pixels; ``None`` leaves the tower's own.
        init_log_scale: initial t', the logarithm of the factor on the cosines (SigLIP, Algorithm 1: log 10).
        init_bias: initial b (SigLIP: -10); ``"auto"`` waits for :meth:`set_auto_bias`; ``None`` makes no bias, as the
            softmax loss wants.
        micro_batch_size: encode training batches in slices of so many samples under activation checkpointing.
        freeze_image: keep the image tower in evaluation mode and without gradients.
        freeze_text: likewise the text tower.
        canonicalize: let the tokenizer lower-case captions and strip punctuation.
        lora: adapters in the image tower's blocks, which then train instead of its own weights.
        saliency: leave out the least salient patch tokens of the image tower, a vision transformer.
        compile_towers: train with compiled towers, see :meth:`ImageEncoder.compile_for_training`.

    Attributes:
        log_scale: fp32 parameter ``(1,)``, t'. Never clamped.
        bias: fp32 parameter ``(1,)``, b, or ``None``.
        tokenizer: captions to ids, for the data room.
        image_size: side of the square input, in pixels.
        context_length: tokens a caption.
        embed_dim: dimensions of the embeddings.

    Raises:
        ValueError: unknown names, weights that cannot be had, a tokenizer with more ids than the text tower has
            embeddings, or BatchNorm together with ``micro_batch_size``.
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        image_tower: TowerConfig | str,
        text_tower: TowerConfig | str,
        embed_dim: int | None = None,
        tokenizer: str | None = None,
        context_length: int | None = None,
        image_size: int | None = None,
        init_log_scale: float = math.log(10),
        init_bias: float | Literal["auto"] | None = -10.0,
        micro_batch_size: int | None = None,
        freeze_image: bool = False,
        freeze_text: bool = False,
        canonicalize: bool = False,
        lora: Lora | None = None,
        saliency: SaliencyMasking | None = None,
        compile_towers: Compile = False,
    ) -> None:
        super().__init__(image_tower, image_size, micro_batch_size, freeze_image, lora, saliency, compile_towers)
        text_config = TowerConfig.of(text_tower)
        self.text_tower, self.tokenizer = _text_tower_and_tokenizer(
            text_config, tokenizer, context_length, canonicalize
        )
        if freeze_text:
            self._frozen.append(self.text_tower)
            self.keep_frozen()
        self.context_length = self.text_tower.context_length
        self.embed_dim = self._add_projections(embed_dim)
        self.log_scale = nn.Parameter(torch.full((1,), init_log_scale, dtype=torch.float32))
        self._bias_is_auto = init_bias == "auto"
        value = 0.0 if init_bias == "auto" else init_bias
        bias = None if value is None else nn.Parameter(torch.full((1,), value, dtype=torch.float32))
        self.register_parameter("bias", bias)
        self.check_slices()

    @property
    @override
    def towers(self) -> list[nn.Module]:
        return [self.image_tower, self.text_tower]

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings of pictures and captions; see :meth:`encode_image` and :meth:`encode_text`."""
        return self.encode_image(image), self.encode_text(text)

    def encode_image(self, image: Tensor) -> Tensor:
        """Embed pictures.

        Args:
            image: uint8 ``[B, 3, H, W]``, which the tower scales and normalises with its own mean and standard
                deviation, or floating point, taken as already normalised.

        Returns:
            ``[B, embed_dim]``, rows of length one. Normalised in fp32 (fp64 stays fp64), then returned in the type
            in which the tower computes (half precision under autocast).
        """
        return self.encode_slices(self._encode_image_slice, image, self.image_tower, "image")

    def encode_text(self, text: Tensor) -> Tensor:
        """Embed captions, int64 ``[T, context_length]``, as unit rows ``[T, embed_dim]``; see :meth:`encode_image`."""
        return self.encode_slices(self._encode_text_slice, text, self.text_tower, "text")

    def text_features(self, text: Tensor) -> Tensor:
        """Features ``[T, width]`` of the text tower, before projection, of int64 ids ``[T, context_length]``."""
        return self.tower_features(self.text_tower, text)

    def project_image(self, features: Tensor) -> Tensor:
        """Unit embeddings ``[B, embed_dim]`` of what :meth:`image_features` gave, now or before."""
        return unit_rows(self.image_projection(features))

    def project_text(self, features: Tensor) -> Tensor:
        """Unit embeddings ``[T, embed_dim]`` of what :meth:`text_features` gave, now or before."""
        return unit_rows(self.text_projection(features))

    def feature_keys(self) -> dict[str, str]:
        """Identity of the features of each frozen tower, ``image`` and ``text``; towers in training have none."""
        keys = super().feature_keys()
        if self.is_frozen(self.text_tower):
            keys["text"] = text_key(self.text_tower, self.tokenizer)
        return keys

    @property
    def bias_is_auto(self) -> bool:
        """Whether b waits for :meth:`set_auto_bias`."""
        return self.bias is not None and self._bias_is_auto

    def take_bias_from_batch(self) -> None:
        """Let :meth:`set_auto_bias` decide b, as ``init_bias="auto"`` does."""
        self._bias_is_auto = True

    def set_auto_bias(self, global_batch_size: int) -> None:
        """Set b to ``-log(B - 1)`` where ``init_bias="auto"`` asked for it; otherwise do nothing.

        At cosine zero the model then says that one pair in B is a match, which is so: the loss starts at about
        ``log B + 1`` instead of being dominated by B - 1 negatives or by the positive.

        Raises:
            ValueError: a global batch of fewer than two pairs.
        """
        if self.bias is None or not self._bias_is_auto:
            return
        if global_batch_size < 2:
            raise ValueError(f'init_bias "auto" needs a global batch of at least 2 pairs, got {global_batch_size}.')
        with torch.no_grad():
            self.bias.fill_(-math.log(global_batch_size - 1))

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any, **kwargs: Any) -> None:
        """Keep a loaded b: the batch no longer decides it."""
        self._bias_is_auto = self._bias_is_auto and f"{prefix}bias" not in state_dict
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _encode_image_slice(self, image: Tensor) -> Tensor:
        return self.project_image(self.image_features(image))

    def _encode_text_slice(self, text: Tensor) -> Tensor:
        return self.project_text(self.text_features(text))

    def _add_projections(self, embed_dim: int | None) -> int:
        """Create both projections and return the dimensions of the space."""
        image, text = self.image_tower, self.text_tower
        shared = image.joint_space is not None and image.joint_space == text.joint_space
        if shared and image.width == text.width and embed_dim in (None, image.width):
            self.image_projection: nn.Module = nn.Identity()
            self.text_projection: nn.Module = nn.Identity()
            return image.width
        dim = embed_dim or image.width
        self.image_projection = _linear(image.width, dim) if embed_dim else nn.Identity()
        self.text_projection = _linear(text.width, dim)
        return dim

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Keep t' and b out of casts to half precision: bf16 has steps of 1/64 at log 10, too coarse to learn in."""
        scalars = [p for p in (self.log_scale, self.bias) if p is not None]
        before = [p.detach().clone() for p in scalars]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        for parameter, value in zip(scalars, before, strict=True):
            if parameter.dtype in (torch.bfloat16, torch.float16):
                parameter.data = value.to(parameter.device)
        return self


def unit_rows(features: Tensor) -> Tensor:
    """Rows ``[B, d]`` scaled to length one, computed in at least fp32.

    Returned in the type that came; under autocast fp32 becomes its type, since it depends on a tower's last layer alone
    (norms give fp32) and both towers' embeddings must be of one.
    """
    kind, precise = features.device.type, torch.promote_types(features.dtype, torch.float32)
    is_mixed = torch.is_autocast_enabled(kind) and features.dtype == torch.float32
    with torch.autocast(kind, enabled=False):
        rows = functional.normalize(features.to(precise), dim=-1)
        return rows.to(torch.get_autocast_dtype(kind) if is_mixed else features.dtype)


def _linear(width: int, dim: int) -> nn.Linear:
    layer = nn.Linear(width, dim, bias=False)
    nn.init.normal_(layer.weight, std=width**-0.5)
    return layer


def _text_tower_and_tokenizer(
    config: TowerConfig, source: str | None, context_length: int | None, canonicalize: bool
) -> tuple[TextTower, Tokenizer]:
    """Local towers take their vocabulary from the tokenizer; the others name the tokenizer that they were made for."""
    if config.scheme == "local":
        length = context_length or config.kwargs.get("context_length", 32)
        tokenizer = Tokenizer(source or "clip", length, canonicalize)
        return build_text_tower(config, length, tokenizer.vocab_size, tokenizer.pad_id), tokenizer
    tower = build_text_tower(config, context_length, vocab_size=0, pad_id=0)
    tokenizer = Tokenizer(source or tower.default_tokenizer, tower.context_length, canonicalize)
    if tokenizer.vocab_size > tower.vocab_size:
        raise ValueError(
            f"Tokenizer {tokenizer.source!r} has {tokenizer.vocab_size} ids, but text tower {config.name!r} has only "
            f"{tower.vocab_size} embeddings. Give the tokenizer that the tower was trained with."
        )
    return tower, tokenizer
