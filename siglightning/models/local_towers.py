"""The small towers of this package, meant for pictures of 64 pixels, short captions and a CPU: ``local:`` names."""

import inspect
import math
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from siglightning.models.bottleneck import BottleneckEmbedding
from siglightning.models.towers import HALF_MEAN, HALF_STD, ImageTower, TextTower, TowerConfig, unknown_name

Tower = TypeVar("Tower", bound=nn.Module)

POOLINGS = ("mean", "last", "map")


class ResidualConv(nn.Module):
    """Pre-norm residual block of two 3x3 convolutions: ``x + conv(act(norm(conv(act(norm(x))))))``.

    GroupNorm instead of BatchNorm: a sample's features then never depend on its neighbours in the batch.
    """

    def __init__(self, width: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, width)
        self.conv1 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.GroupNorm(groups, width)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)  # the block starts as the identity, so depth costs no warm-up
        nn.init.zeros_(self.conv2.bias)  # type: ignore[arg-type]  # typed Optional; present by construction

    def forward(self, x: Tensor) -> Tensor:
        """Maps ``[B, width, H, W]`` to the same shape."""
        y = self.conv1(functional.gelu(self.norm1(x)))
        out: Tensor = x + self.conv2(self.dropout(functional.gelu(self.norm2(y))))
        return out


class ConvTower(ImageTower):
    """A residual convolutional tower without BatchNorm; accepts any image size that its strides divide.

    Args:
        image_size: side of the square input, in pixels.
        width: channels of the first stage; every further stage doubles them.
        depths: residual blocks of each stage; between stages the resolution halves.
        patch: stride and kernel of the first convolution, in pixels.
        groups: of every GroupNorm.
        dropout: probability inside the residual blocks.

    Raises:
        ValueError: the strides do not divide the image size, or the groups do not divide the width.
    """

    def __init__(
        self,
        image_size: int = 64,
        width: int = 64,
        depths: Sequence[int] = (1, 1, 1),
        patch: int = 4,
        groups: int = 8,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        stride = patch * 2 ** (len(depths) - 1)
        if image_size % stride:
            raise ValueError(
                f"local:conv shrinks pictures {stride}-fold; image_size {image_size} is no multiple of it."
            )
        if width % groups:
            raise ValueError(f"local:conv: groups must divide width, got groups {groups} and width {width}.")
        widths = [width * 2**stage for stage in range(len(depths))]
        layers: list[nn.Module] = [nn.Conv2d(3, width, patch, stride=patch)]
        for stage, (channels, depth) in enumerate(zip(widths, depths, strict=True)):
            if stage:
                before = widths[stage - 1]
                layers += [nn.GroupNorm(groups, before), nn.Conv2d(before, channels, 2, stride=2)]
            layers += [ResidualConv(channels, groups, dropout) for _ in range(depth)]
        self.layers = nn.Sequential(*layers)
        self.norm = nn.LayerNorm(widths[-1])
        self.width, self.image_size = widths[-1], image_size
        self.mean, self.std = HALF_MEAN, HALF_STD

    def plain_features(self, image: Tensor) -> Tensor:
        """Features ``[B, width]`` of normalised pictures ``[B, 3, H, W]``, averaged over positions."""
        # Colours innermost is about a tenth faster on a CPU, but torch's GroupNorm then takes the variance as a
        # difference of sums: on flat drawings 1e-5 off in the embeddings. Training does not mind, evaluation does.
        layout = torch.channels_last if self.training else torch.contiguous_format
        maps = self.layers(image.contiguous(memory_format=layout))
        features: Tensor = self.norm(maps.mean(dim=(2, 3)))
        return features


class TransformerBlock(nn.Module):
    """Pre-norm transformer block: attention, then a four times wider MLP, each added to its input."""

    def __init__(self, width: int, heads: int, dropout: float, mlp_ratio: float) -> None:
        super().__init__()
        self.heads, self.dropout = heads, dropout
        hidden = round(width * mlp_ratio)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        """Maps ``[B, L, width]`` to the same shape; ``mask`` bool ``[B, 1, 1, L]``, true where a key may be read."""
        x = x + self._drop(self.out(self._attend(self.norm1(x), mask, causal)))
        return x + self._drop(self.down(self._drop(functional.gelu(self.up(self.norm2(x))))))

    def _attend(self, x: Tensor, mask: Tensor | None, causal: bool) -> Tensor:
        query, key, value = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = functional.scaled_dot_product_attention(query, key, value, attn_mask=mask, is_causal=causal)
        return mixed.transpose(1, 2).flatten(2)

    def _drop(self, x: Tensor) -> Tensor:
        return functional.dropout(x, self.dropout, self.training)


class AttentionPool(nn.Module):
    """One learned query attends over all positions (the "MAP head" of SigLIP, without its MLP)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = nn.Parameter(torch.randn(width) / math.sqrt(width))
        self.key_value, self.out = nn.Linear(width, 2 * width), nn.Linear(width, width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Pools ``[B, L, width]`` to ``[B, width]``; ``mask`` bool ``[B, 1, 1, L]``."""
        query = self.query.view(1, self.heads, 1, -1).expand(len(x), -1, -1, -1)
        key, value = self.key_value(x).unflatten(-1, (2, self.heads, -1)).permute(2, 0, 3, 1, 4)
        pooled: Tensor = self.out(functional.scaled_dot_product_attention(query, key, value, attn_mask=mask).flatten(1))
        return pooled


class LocalTextTransformer(TextTower):
    """A small pre-norm text transformer with learned positions.

    Args:
        vocab_size: ids lie in ``[0, vocab_size)``.
        context_length: tokens a caption.
        pad_id: the id that fills up captions.
        width: features a token and a row.
        depth: blocks.
        heads: of the attention; must divide the width.
        mlp_ratio: hidden width of the MLP over ``width``.
        dropout: probability after the embedding, the attention and both MLP layers.
        pooling: ``mean`` over tokens, ``last`` token that is not padding, or ``map`` (attention pooling).
        causal: let a token see only what stands before it.
        mask_padding: leave padding out of attention and pooling. SigLIP reads it; with ``False`` so does this tower.
        bottleneck: middle width of a factored token embedding (``None``: one full table).
        norm_bias: let the last norm add a bias. Without one, a tower of depth 0 with mean pooling is a linear map of
            the mean but for its length, which unit embeddings do not keep; other libraries can hold that.

    Raises:
        ValueError: unknown pooling, heads that do not divide the width, or a bottleneck wider than it.
    """

    def __init__(
        self,
        vocab_size: int,
        context_length: int = 32,
        pad_id: int = 0,
        width: int = 192,
        depth: int = 3,
        heads: int = 3,
        mlp_ratio: float = 4.0,
        dropout: float = 0.0,
        pooling: str = "mean",
        causal: bool = False,
        mask_padding: bool = True,
        bottleneck: int | None = None,
        norm_bias: bool = True,
    ) -> None:
        super().__init__()
        if pooling not in POOLINGS:
            raise unknown_name("pooling", pooling, POOLINGS)
        if width % heads:
            raise ValueError(f"local:text_transformer: heads must divide width, got heads {heads} and width {width}.")
        self.width, self.context_length, self.vocab_size, self.pad_id = width, context_length, vocab_size, pad_id
        self.pooling, self.causal, self.mask_padding, self.dropout = pooling, causal, mask_padding, dropout
        self.token_embedding: nn.Module = (
            nn.Embedding(vocab_size, width)
            if bottleneck is None
            else BottleneckEmbedding(vocab_size, bottleneck, width)
        )
        self.position_embedding = nn.Parameter(torch.empty(context_length, width))
        self.blocks = nn.ModuleList(TransformerBlock(width, heads, dropout, mlp_ratio) for _ in range(depth))
        self.pool = AttentionPool(width, heads) if pooling == "map" else None
        self.norm = nn.LayerNorm(width, bias=norm_bias)
        self._initialise(depth)

    def forward(self, text: Tensor) -> Tensor:
        """Features ``[B, width]`` of int64 ids ``[B, L]`` with ``L`` at most ``context_length``."""
        real = self._real_tokens(text)
        mask = self._attention_mask(real)
        x = self.token_embedding(text) + self.position_embedding[: text.shape[1]]
        x = functional.dropout(x, self.dropout, self.training)
        for block in self.blocks:
            x = block(x, mask, self.causal and mask is None)
        if self.pooling == "mean":  # normalised afterwards, lest a token that training never met weigh like any other
            return cast(Tensor, self.norm(self._pool_without_parameters(x, real)))
        x = self.norm(x)
        if self.pool is not None:
            return cast(Tensor, self.pool(x, None if real is None else real[:, None, None, :]))
        return self._pool_without_parameters(x, real)

    def _real_tokens(self, text: Tensor) -> Tensor | None:
        """Bool ``[B, L]``: not padding. The first token always counts, lest an empty caption have none."""
        if not self.mask_padding:
            return None
        real = text != self.pad_id
        real[:, 0] = True
        return real

    def _attention_mask(self, real: Tensor | None) -> Tensor | None:
        if real is None:
            return None
        mask = real[:, None, None, :]
        if not self.causal:
            return mask
        length = real.shape[1]
        return mask & torch.ones(length, length, dtype=torch.bool, device=real.device).tril()

    def _pool_without_parameters(self, x: Tensor, real: Tensor | None) -> Tensor:
        if self.pooling == "mean":
            if real is None:
                return x.mean(dim=1)
            weight = real.to(x.dtype).unsqueeze(-1)
            return (x * weight).sum(1) / weight.sum(1)
        if real is None:
            return x[:, -1]
        positions = torch.arange(real.shape[1], device=x.device)
        last = (real * positions).amax(dim=1)
        return x[torch.arange(len(x), device=x.device), last]

    def _initialise(self, depth: int) -> None:
        """Unit-scale embeddings shrunk to 0.02, and residual branches scaled so that their sum stays of order one."""
        nn.init.normal_(self.position_embedding, std=0.01)
        for name, layer in self.named_modules():
            if isinstance(layer, nn.Embedding):
                nn.init.normal_(layer.weight, std=0.02)
            elif isinstance(layer, nn.Linear):
                is_branch_end = name.startswith("blocks") and name.endswith(("out", "down"))
                std = layer.in_features**-0.5 * ((2 * depth) ** -0.5 if is_branch_end else 1.0)
                nn.init.normal_(layer.weight, std=std)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)


IMAGE_TOWERS: dict[str, Callable[..., ImageTower]] = {"conv": ConvTower}
TEXT_TOWERS: dict[str, Callable[..., TextTower]] = {"text_transformer": LocalTextTransformer}


def local_image_tower(config: TowerConfig, image_size: int | None) -> ImageTower:
    """Build ``local:conv``; see :func:`siglightning.models.towers.build_image_tower`."""
    given = {} if image_size is None else {"image_size": image_size}
    return _build(config, IMAGE_TOWERS, given)


def local_text_tower(config: TowerConfig, context_length: int | None, vocab_size: int, pad_id: int) -> TextTower:
    """Build ``local:text_transformer``; see :func:`siglightning.models.towers.build_text_tower`."""
    given: dict[str, Any] = {"vocab_size": vocab_size, "pad_id": pad_id}
    if context_length is not None:
        given["context_length"] = context_length
    return _build(config, TEXT_TOWERS, given)


def _build(config: TowerConfig, makers: dict[str, Callable[..., Tower]], given: dict[str, Any]) -> Tower:
    if config.model not in makers:
        raise unknown_name("local tower", config.name, [f"local:{name}" for name in makers])
    if config.pretrained:
        raise ValueError(f"Tower {config.name!r} comes without weights; load a checkpoint of the whole model instead.")
    make = makers[config.model]
    accepted = inspect.signature(make).parameters
    if wrong := set(config.kwargs) - set(accepted):
        raise unknown_name(f"argument of {config.name}:", min(wrong), accepted, f"Accepted: {', '.join(accepted)}.")
    try:
        return make(**(given | config.kwargs))
    except TypeError as error:
        raise ValueError(
            f"Tower {config.name!r}: an argument of the wrong type in {config.kwargs}: {error}."
        ) from error
