"""SigLIP checkpoints of big_vision, ``.npz``: names and layouts of flax to those of transformers' SiglipModel.

Facts about the format: flax keeps kernels as ``[in, out]``, heads apart (``[in, heads, head_dim]``), and scanned layers
stacked under ``encoderblock/``. From the shapes alone the whole config follows.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siglightning.models.interop.checkpoint import Checkpoint, with_scalars
from siglightning.models.interop.files import read_tensors
from siglightning.models.interop.from_transformers import PREFIXES
from siglightning.models.towers import TowerConfig

# Vocabularies of the published checkpoints, told apart by their sizes.
_TOKENIZERS = {
    32_000: "hf:google/siglip-base-patch16-224",
    250_000: "hf:google/siglip-base-patch16-256-multilingual",
    256_000: "hf:google/siglip2-base-patch16-224",
}
_LAYERS = ("img/Transformer/", "txt/Encoder_0/")
_ATTENTION = "MultiHeadDotProductAttention_0/"
_RULES: tuple[tuple[str, str], ...] = (
    (r"^img/embedding/", "vision_model.embeddings.patch_embedding."),
    (r"^img/pos_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^img/Transformer/encoder_norm/", "vision_model.post_layernorm."),
    (r"^img/Transformer/encoderblock_(\d+)/", r"vision_model.encoder.layers.\1."),
    (r"^img/MAPHead_0/probe$", "vision_model.head.probe"),
    (r"^img/MAPHead_0/LayerNorm_0/", "vision_model.head.layernorm."),
    (rf"^img/MAPHead_0/{_ATTENTION}", "vision_model.head.attention."),
    (r"^img/MAPHead_0/", "vision_model.head."),
    (r"^txt/Embed_0/embedding$", "text_model.embeddings.token_embedding.weight"),
    (r"^txt/pos_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^txt/Encoder_0/encoder_norm/", "text_model.final_layer_norm."),
    (r"^txt/Encoder_0/encoderblock_(\d+)/", r"text_model.encoder.layers.\1."),
    (r"^txt/head/", "text_model.head."),
    (r"LayerNorm_0/", "layer_norm1."),
    (r"LayerNorm_1/", "layer_norm2."),
    (_ATTENTION, "self_attn."),
    (r"MlpBlock_0/Dense_0/", "mlp.fc1."),
    (r"MlpBlock_0/Dense_1/", "mlp.fc2."),
    (r"([qkv])(uery|ey|alue)/(?=kernel|bias)", r"\1_proj."),
    (r"out/(?=kernel|bias)", "out_proj."),
    (r"(kernel|scale)$", "weight"),
    (r"^t$", "logit_scale"),
    (r"^b$", "logit_bias"),
)


def is_big_vision(names: list[str]) -> bool:
    """Whether the names in a numpy archive are those of an image-text model of big_vision."""
    plain = {name.removeprefix("params/") for name in names}
    return "img/embedding/kernel" in plain and "txt/Embed_0/embedding" in plain


def from_big_vision(path: Path) -> Checkpoint:
    """Read a SigLIP or SigLIP 2 checkpoint of big_vision.

    The tokenizer is not part of the file. It is known for the published vocabularies, others must be given.

    Raises:
        ValueError: a file that is damaged, holds pickled objects, or is of another model; the message says which.
    """
    arrays = {name.removeprefix("params/"): value.float() for name, value in read_tensors(path).items()}
    if not is_big_vision(list(arrays)):
        raise ValueError(
            f"{path} holds no image-text model of big_vision: expected img/embedding/kernel and txt/Embed_0/embedding, "
            f"got {', '.join(sorted(arrays)[:3])} ..."
        )
    try:
        arrays = _unstacked(arrays)
        kind, kwargs = _config(arrays)
        weights = _joined({_name(name): _turned(name, value) for name, value in arrays.items()})
    except (KeyError, RuntimeError, IndexError) as error:
        raise ValueError(f"{path} is no SigLIP of big_vision: {type(error).__name__} {error}") from error
    tower = TowerConfig(f"hf:{kind}", False, kwargs)
    arguments: dict[str, Any] = {"image_tower": tower, "text_tower": tower}
    vocabulary = kwargs["text_config"]["vocab_size"]
    if vocabulary in _TOKENIZERS:
        arguments["tokenizer"] = _TOKENIZERS[vocabulary]
    return Checkpoint(str(path), "big_vision", arguments, dict(with_scalars(weights, PREFIXES)), path, (path,))


def _unstacked(arrays: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Layers that were scanned lie in one array, first axis first."""
    found: dict[str, Tensor] = {}
    for name, value in arrays.items():
        if "/encoderblock/" in name:
            found |= {name.replace("encoderblock", f"encoderblock_{i}"): part for i, part in enumerate(value)}
        else:
            found[name] = value
    return found


def _config(arrays: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Model type and config of transformers, from shapes."""
    kernel, positions = arrays["img/embedding/kernel"], arrays["img/pos_embedding"]
    is_naflex = kernel.ndim == 2
    patch = math.isqrt(kernel.shape[0] // 3) if is_naflex else kernel.shape[0]
    patches = positions.numel() // positions.shape[-1]
    vision = {"patch_size": patch} | _tower(arrays, _LAYERS[0])
    vision |= {"num_patches": patches} if is_naflex else {"image_size": math.isqrt(patches) * patch}
    if not any(name.startswith("img/MAPHead_0/") for name in arrays):
        vision["vision_use_head"] = False
    table = arrays["txt/Embed_0/embedding"]
    text: dict[str, Any] = {
        "vocab_size": table.shape[0],
        "max_position_embeddings": arrays["txt/pos_embedding"].shape[-2],
    }
    text |= _tower(arrays, _LAYERS[1]) | {"projection_size": arrays["txt/head/bias"].shape[0]}
    # Its end and padding are 1 in SigLIP's vocabularies; Gemma's, of SigLIP 2, pads with 0.
    text |= {"bos_token_id": None, "eos_token_id": 1, "pad_token_id": 0 if table.shape[0] == 256_000 else 1}
    return ("siglip2" if is_naflex else "siglip"), {"vision_config": vision, "text_config": text}


def _tower(arrays: Mapping[str, Tensor], prefix: str) -> dict[str, int]:
    query = arrays[f"{prefix}encoderblock_0/{_ATTENTION}query/kernel"]  # [width, heads, width of a head]
    blocks = {name.split("/")[2] for name in arrays if name.startswith(f"{prefix}encoderblock_")}
    return {
        "hidden_size": query.shape[0],
        "num_attention_heads": query.shape[1],
        "num_hidden_layers": len(blocks),
        "intermediate_size": arrays[f"{prefix}encoderblock_0/MlpBlock_0/Dense_0/bias"].shape[0],
    }


def _name(name: str) -> str:
    for pattern, replacement in _RULES:
        name = re.sub(pattern, replacement, name)
    return name


def _turned(name: str, value: Tensor) -> Tensor:
    """An array as torch lays it out."""
    if name.endswith("pos_embedding"):
        return value.reshape(-1, value.shape[-1])
    if "/kernel" not in name:
        return value.reshape(-1) if "/bias" in name else value
    if value.ndim == 4:  # a convolution: [height, width, in, out]
        return value.permute(3, 2, 0, 1).contiguous()
    if value.ndim == 3:  # heads apart, behind what goes in or before what comes out
        value = value.flatten(0, 1) if "/out/" in name else value.flatten(1)
    return value.T.contiguous()


def _joined(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """Query, key and value in one, as torch's attention has them, which pools the picture."""
    for kind in ("weight", "bias"):
        parts = [weights.pop(f"vision_model.head.attention.{part}_proj.{kind}", None) for part in "qkv"]
        if all(part is not None for part in parts):
            weights[f"vision_model.head.attention.in_proj_{kind}"] = torch.cat([p for p in parts if p is not None])
    return weights
