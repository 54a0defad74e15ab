"""Both halves of a SigLIP under the names of transformers, from the towers of each library that compute the same.

The form (Zhai et al. 2023, arXiv:2303.15343, and its public code): a vision transformer without class token, pooled by
one learned query that attends to all patches, then an MLP; a text transformer without masks, which reads padding, pools
its last position and has a linear head. A tower of this form differs between libraries in names and in how query, key
and value are stacked, in nothing else; so its weights can be carried over exactly.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from siglightning.models.bottleneck import BottleneckEmbedding
from siglightning.models.export.unheld import UnheldError, activation, kind
from siglightning.models.local_towers import LocalTextTransformer
from siglightning.models.towers import ImageTower, TextTower

_OF_TRANSFORMERS = ("SiglipTextModel", "SiglipTextTransformer", "Siglip2TextModel", "Siglip2TextTransformer")


@dataclass(frozen=True)
class Half:
    """One tower.

    Attributes:
        config: arguments of transformers' ``SiglipVisionConfig`` or ``SiglipTextConfig``.
        weights: by the names of transformers' ``SiglipVisionModel`` or ``SiglipTextModel``.
    """

    config: dict[str, Any]
    weights: dict[str, Tensor]


class _Source:
    """A module's weights, each to be used once: what is left over is what the form does not have."""

    def __init__(self, module: nn.Module) -> None:
        self.left: dict[str, Tensor] = dict(module.state_dict())
        self._kind = kind(module)

    def pop(self, name: str) -> Tensor:
        if name not in self.left:
            raise UnheldError(f"{self._kind} has no {name!r}, which SigLIP has")
        return self.left.pop(name)

    def layer(self, name: str, target: str) -> Iterator[tuple[str, Tensor]]:
        """Weight and bias under another name."""
        for part in ("weight", "bias"):
            yield f"{target}.{part}", self.pop(f"{name}.{part}")

    def stacked(self, names: tuple[str, str], target: str, parts: tuple[str, ...]) -> Iterator[tuple[str, Tensor]]:
        """Projections that are stacked in one weight and one bias, apart."""
        for name, part in zip(names, ("weight", "bias"), strict=True):
            for projection, rows in zip(parts, self.pop(name).chunk(len(parts)), strict=True):
                yield f"{target}.{projection}_proj.{part}", rows

    def require_empty(self) -> None:
        if self.left:
            raise UnheldError(f"{self._kind} has {', '.join(sorted(self.left)[:3])}, which SigLIP has not")


def image_half(tower: ImageTower) -> Half:
    """The image tower as transformers' ``SiglipVisionModel``, or ``Siglip2VisionModel`` where it is that.

    Raises:
        UnheldError: a tower of another form.
    """
    trunk: Any = getattr(tower, "trunk", tower)
    if type(trunk).__name__ == "TimmModel" and not len(trunk.head):  # open_clip's wrapper
        trunk = trunk.trunk
    name = type(trunk).__name__
    if name.startswith("Siglip2Vision") and trunk.use_head:
        return Half(_own_config(trunk), dict(trunk.state_dict()))
    if name in ("SiglipVisionModel", "SiglipVisionTransformer") and trunk.use_head:
        return Half(_own_config(trunk) | {"image_size": tower.image_size}, dict(trunk.state_dict()))
    if name != "VisionTransformer" or not type(trunk).__module__.startswith("timm."):
        raise UnheldError(f"its image tower is {kind(trunk)}, no vision transformer with SigLIP's attention pooling")
    if type(getattr(trunk, "attn_pool", None)).__name__ != "AttentionPoolLatent" or trunk.num_prefix_tokens:
        raise UnheldError("its image tower pools otherwise than SigLIP (attention pooling without a class token)")
    return _timm_half(trunk, tower.image_size)


def _timm_half(trunk: Any, image_size: int) -> Half:
    source, weights = _Source(trunk), dict[str, Tensor]()
    weights |= source.layer("patch_embed.proj", "embeddings.patch_embedding")
    weights["embeddings.position_embedding.weight"] = source.pop("pos_embed")[0]
    for number in range(len(trunk.blocks)):
        block, target = f"blocks.{number}", f"encoder.layers.{number}"
        qkv = (f"{block}.attn.qkv.weight", f"{block}.attn.qkv.bias")
        weights |= source.stacked(qkv, f"{target}.self_attn", ("q", "k", "v"))
        weights |= source.layer(f"{block}.attn.proj", f"{target}.self_attn.out_proj")
        for name, theirs in (("norm1", "layer_norm1"), ("norm2", "layer_norm2"), ("mlp.fc1", "mlp.fc1"),
                             ("mlp.fc2", "mlp.fc2")):  # fmt: skip
            weights |= source.layer(f"{block}.{name}", f"{target}.{theirs}")
    weights |= source.layer("norm", "post_layernorm")
    weights |= _timm_pooling(source)
    source.require_empty()
    return Half(_timm_config(trunk, image_size), weights)


def _timm_pooling(source: _Source) -> Iterator[tuple[str, Tensor]]:
    yield "head.probe", source.pop("attn_pool.latent")
    for part in ("weight", "bias"):
        stacked = [source.pop(f"attn_pool.q.{part}"), source.pop(f"attn_pool.kv.{part}")]
        yield f"head.attention.in_proj_{part}", torch.cat(stacked)
    yield from source.layer("attn_pool.proj", "head.attention.out_proj")
    yield from source.layer("attn_pool.norm", "head.layernorm")
    for name in ("mlp.fc1", "mlp.fc2"):
        yield from source.layer(f"attn_pool.{name}", f"head.{name}")


def _timm_config(trunk: Any, image_size: int) -> dict[str, Any]:
    block, pool = trunk.blocks[0], trunk.attn_pool
    acts = {activation(part.mlp.act) for part in (*trunk.blocks, pool)}
    heads = {part.num_heads for part in (*(block.attn for block in trunk.blocks), pool)}
    wide = {part.mlp.fc1.out_features for part in (*trunk.blocks, pool)}
    norms = [trunk.norm, pool.norm, *(norm for block in trunk.blocks for norm in (block.norm1, block.norm2))]
    eps = {norm.eps for norm in norms}
    differing = [values for values in (acts, heads, wide, eps) if len(values) != 1]
    if differing or type(block).__name__ != "Block" or trunk.patch_embed.proj.kernel_size[0] != block_patch(trunk):
        raise UnheldError(f"its blocks and its pooling differ ({differing or type(block).__name__})")
    return {
        "hidden_size": trunk.embed_dim,
        "intermediate_size": wide.pop(),
        "num_hidden_layers": len(trunk.blocks),
        "num_attention_heads": heads.pop(),
        "image_size": image_size,
        "patch_size": block_patch(trunk),
        "hidden_act": acts.pop(),
        "layer_norm_eps": eps.pop(),
    }


def block_patch(trunk: Any) -> int:
    """Side of a patch of a timm vision transformer, in pixels."""
    return int(trunk.patch_embed.proj.stride[0])


def text_half(tower: TextTower, projection: nn.Module) -> Half:
    """The text tower and the projection behind it as transformers' ``SiglipTextModel``.

    Raises:
        UnheldError: a tower of another form.
    """
    trunk: Any = getattr(tower, "trunk", tower)
    if isinstance(tower, LocalTextTransformer):
        return _local_half(tower, projection)
    if type(trunk).__name__ in _OF_TRANSFORMERS:
        return _transformers_half(trunk, tower.context_length, projection)
    if type(trunk).__name__ == "TextTransformer" and type(trunk).__module__.startswith("open_clip."):
        return _open_clip_half(trunk, projection)
    raise UnheldError(f"its text tower is {kind(trunk)}, no text transformer that pools its last position")


def token_table(tower: LocalTextTransformer) -> Tensor:
    """The token embedding ``[N, W]`` of a local tower; a factored one multiplied out, in fp64."""
    embedding = tower.token_embedding
    if isinstance(embedding, BottleneckEmbedding):
        return (embedding.table.weight.double() @ embedding.expand.weight.double().T).float().detach()
    assert isinstance(embedding, nn.Embedding)
    return embedding.weight.detach()


def require_last_position(tower: LocalTextTransformer) -> None:
    """Refuse a local tower that is not the text transformer of SigLIP.

    Raises:
        UnheldError: another pooling, or masks.
    """
    if tower.pooling != "last" or tower.causal or tower.mask_padding:
        raise UnheldError(
            f"its text tower has pooling: {tower.pooling}, causal: {str(tower.causal).lower()}, mask_padding: "
            f"{str(tower.mask_padding).lower()}; SigLIP's has pooling: last, causal: false, mask_padding: false"
        )


def composed(projection: nn.Module, weight: Tensor, bias: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """A linear layer and our projection behind it as one: weight ``[d, W]`` and bias ``[d]``, computed in fp64."""
    bias = torch.zeros(len(weight), device=weight.device) if bias is None else bias
    if isinstance(projection, nn.Identity):
        return weight.detach(), bias.detach()
    outer = projection.weight.detach().double()  # type: ignore[operator]  # a linear layer
    return (outer @ weight.detach().double()).float(), (outer @ bias.detach().double()).float()


def _local_half(tower: LocalTextTransformer, projection: nn.Module) -> Half:
    require_last_position(tower)
    source, weights = _Source(tower), dict[str, Tensor]()
    source.left = {name: value for name, value in source.left.items() if not name.startswith("token_embedding.")}
    weights["embeddings.token_embedding.weight"] = token_table(tower)
    weights["embeddings.position_embedding.weight"] = source.pop("position_embedding")
    names = {"norm1": "layer_norm1", "norm2": "layer_norm2", "out": "self_attn.out_proj", "up": "mlp.fc1"}
    for number in range(len(tower.blocks)):
        block, target = f"blocks.{number}", f"encoder.layers.{number}"
        weights |= source.stacked((f"{block}.qkv.weight", f"{block}.qkv.bias"), f"{target}.self_attn", ("q", "k", "v"))
        for name, theirs in (names | {"down": "mlp.fc2"}).items():
            weights |= source.layer(f"{block}.{name}", f"{target}.{theirs}")
    weights |= source.layer("norm", "final_layer_norm")
    source.require_empty()
    head = composed(projection, torch.eye(tower.width))
    blocks: Any = tower.blocks
    hidden, heads = (blocks[0].up.out_features, blocks[0].heads) if len(blocks) else (tower.width, 1)
    shape = (tower.vocab_size, tower.width, hidden, len(blocks), heads, tower.context_length)
    return _text(shape, tower.norm.eps, "gelu", weights, head)


def _open_clip_half(trunk: Any, projection: nn.Module) -> Half:
    if trunk.attn_mask is not None or trunk.pool_type != "last" or trunk.use_pad_mask:
        raise UnheldError(f"its text tower pools {trunk.pool_type!r} or has a mask; SigLIP's pools its last position")
    source, weights = _Source(trunk), dict[str, Tensor]()
    weights["embeddings.token_embedding.weight"] = source.pop("token_embedding.weight")
    weights["embeddings.position_embedding.weight"] = source.pop("positional_embedding")
    names = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj"}
    for number in range(len(trunk.transformer.resblocks)):
        block, target = f"transformer.resblocks.{number}", f"encoder.layers.{number}"
        stacked = (f"{block}.attn.in_proj_weight", f"{block}.attn.in_proj_bias")
        weights |= source.stacked(stacked, f"{target}.self_attn", ("q", "k", "v"))
        for name, theirs in (names | {"mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}).items():
            weights |= source.layer(f"{block}.{name}", f"{target}.{theirs}")
    weights |= source.layer("ln_final", "final_layer_norm")
    head = composed(projection, *open_clip_head(trunk))
    for name in [name for name in source.left if name.startswith("text_projection")]:
        source.pop(name)
    source.require_empty()
    first = trunk.transformer.resblocks[0]
    shape = (trunk.vocab_size, trunk.width, first.mlp.c_fc.out_features, len(trunk.transformer.resblocks), trunk.heads)
    return _text((*shape, trunk.context_length), trunk.ln_final.eps, activation(first.mlp.gelu), weights, head)


def open_clip_head(trunk: Any) -> tuple[Tensor, Tensor | None]:
    """Weight ``[d, W]`` and bias of the projection at the end of open_clip's text transformer."""
    head = trunk.text_projection
    if head is None:
        return torch.eye(trunk.width), None
    return (head.weight, head.bias) if isinstance(head, nn.Linear) else (head.T, None)


def _transformers_half(trunk: Any, context_length: int, projection: nn.Module) -> Half:
    config, weights = _own_config(trunk), dict(trunk.state_dict())
    if context_length != config["max_position_embeddings"]:
        # It pools the last position that it is given: the table is cut, so that it is given as many.
        config["max_position_embeddings"] = context_length
        table = "embeddings.position_embedding.weight"
        weights[table] = weights[table][:context_length].clone()
    weights["head.weight"], weights["head.bias"] = composed(projection, trunk.head.weight, trunk.head.bias)
    return Half(config | {"projection_size": len(weights["head.bias"])}, weights)


def _text(
    shape: tuple[int, ...], eps: float, act: str, weights: dict[str, Tensor], head: tuple[Tensor, Tensor]
) -> Half:
    names = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
             "max_position_embeddings")  # fmt: skip
    config = dict(zip(names, shape, strict=True)) | {"layer_norm_eps": eps, "hidden_act": act}
    weights |= {"head.weight": head[0], "head.bias": head[1]}
    return Half(config | {"projection_size": len(head[1])}, weights)


def _own_config(trunk: Any) -> dict[str, Any]:
    config: dict[str, Any] = trunk.config.to_diff_dict()
    return {name: value for name, value in config.items() if name not in ("model_type", "architectures", "dtype")}
