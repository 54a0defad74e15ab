"""Export to open_clip: a folder that ``create_model_from_pretrained("local-dir:FOLDER")`` reads.

open_clip builds an image tower of timm from its registered name alone. A tower with arguments of its own (another
picture size, width or depth) therefore lies beside as timm's ``config.json`` and is named by its path; the same holds
for a text encoder of transformers. Such a folder names itself: see :func:`relocate`.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from siglightning.models.export.bag_of_words import bert_config, bert_weights, is_bag_of_words, require_linear
from siglightning.models.export.pictures import preprocess_config
from siglightning.models.export.reloaded import Outputs, Reloaded
from siglightning.models.export.siglip_form import composed, open_clip_head, require_last_position, token_table
from siglightning.models.export.timm_models import arguments_of, pooling, written_model
from siglightning.models.export.tokenizer_files import for_transformers, is_clip
from siglightning.models.export.unheld import UnheldError, kind, require_whole_tower
from siglightning.models.hf_towers import HfTextTower
from siglightning.models.local_towers import LocalTextTransformer
from siglightning.models.open_clip_towers import OpenClipImageTower, OpenClipTextTower, resolve_model_name
from siglightning.models.timm_towers import TimmImageTower
from siglightning.models.towers import TowerConfig
from siglightning.models.two_tower import TwoTower

CONFIG, WEIGHTS = "open_clip_config.json", "open_clip_model.safetensors"
IMAGE_FOLDER, TEXT_FOLDER = "image_tower", "text_tower"


def check(network: TwoTower) -> None:
    """Refuse what open_clip's configuration cannot name or its text towers do not compute.

    Raises:
        UnheldError: a tower of another kind.
    """
    require_whole_tower(network)
    preprocess_config(network)
    image, text = _image_config(network), _text_config(network)
    flags = {part["quick_gelu"] for part in (image, text) if part.get("quick_gelu") is not None}
    if len(flags) > 1:
        raise UnheldError("its towers differ in `quick_gelu`, which open_clip has once for both")
    if not is_clip(network.tokenizer.source):
        _, pad_id = for_transformers(network.tokenizer, causal=_is_causal(network))
        if is_bag_of_words(network.text_tower) and pad_id != network.tokenizer.pad_id:
            raise UnheldError("its bag of words leaves out an ordinary token, with which its tokenizer pads")


def write(network: TwoTower, folder: Path) -> None:
    """Write weights, configuration, preprocessing and, where it is not CLIP's own, the tokenizer.

    Raises:
        UnheldError: see :func:`check`.
    """
    from safetensors.torch import save_file

    check(network)
    image, text = _image_config(network), _text_config(network)
    _write_timm(network, image, folder / IMAGE_FOLDER)
    _write_encoder(network, text, folder / TEXT_FOLDER)
    weights = _image_weights(network) | _text_weights(network)
    if is_clip(network.tokenizer.source):  # what open_clip takes where a configuration names no tokenizer
        text["text_cfg"]["tokenizer_kwargs"] = {"clean": "canonicalize"} if network.tokenizer.canonicalize else {}
    else:
        tokenizer, pad_id = for_transformers(network.tokenizer, causal=_is_causal(network))
        tokenizer.save_pretrained(folder)
        text["text_cfg"]["hf_tokenizer_name"] = "tokenizer.json"  # any name: open_clip then reads this folder
        _pad_like(network, pad_id, len(tokenizer), weights, text["text_cfg"])
    quick_gelu = next((part["quick_gelu"] for part in (image, text) if part.get("quick_gelu") is not None), False)
    config: dict[str, Any] = {
        "embed_dim": network.embed_dim,
        "custom_text": True,
        "quick_gelu": quick_gelu,
        "vision_cfg": image["vision_cfg"],
        "text_cfg": text["text_cfg"],
    }
    weights["logit_scale"] = network.log_scale.detach().reshape(())
    if network.bias is not None:
        config["init_logit_bias"] = network.bias.item()
        weights["logit_bias"] = network.bias.detach().reshape(())
    _write_json(folder / CONFIG, {"model_cfg": config, "preprocess_cfg": preprocess_config(network)})
    save_file({name: value.contiguous().clone() for name, value in weights.items()}, folder / WEIGHTS)


def relocate(folder: Path, to: Path) -> bool:
    """Write the path of the folder's future place into it, where it names itself.

    Args:
        folder: where it lies now.
        to: where it will lie.

    Returns:
        Whether it names itself, and so must be relocated again when it is moved.
    """
    config = json.loads((folder / CONFIG).read_text())
    named = False
    for part, key, inner in (
        ("vision_cfg", "timm_model_name", IMAGE_FOLDER),
        ("text_cfg", "hf_model_name", TEXT_FOLDER),
    ):
        settings = config["model_cfg"][part]
        if (folder / inner).is_dir():
            settings[key] = ("local-dir:" if part == "vision_cfg" else "") + str((to / inner).absolute())
            named = True
    if named:
        _write_json(folder / CONFIG, config)
    return named


def reload(folder: Path) -> Reloaded:
    """Read a folder with open_clip alone."""
    import open_clip

    name = f"local-dir:{folder}"
    model, preprocess = open_clip.create_model_from_pretrained(name, return_transform=True)
    model, tokenizer = model.eval(), open_clip.get_tokenizer(name)

    def pixels(pictures: Sequence[Tensor]) -> Tensor:
        return torch.stack([preprocess(Image.fromarray(p.permute(1, 2, 0).numpy())) for p in pictures])

    def tokens(captions: Sequence[str]) -> Tensor:
        ids: Tensor = tokenizer(list(captions))
        return ids

    def outputs(values: Tensor, ids: Tensor) -> Outputs:
        with torch.no_grad():
            image, text = model.encode_image(values, normalize=True), model.encode_text(ids, normalize=True)
            return Outputs(image, text, model.get_logits(values, ids)[0])

    inner = getattr(tokenizer, "tokenizer", None)
    return Reloaded(pixels, tokens, outputs, 0 if inner is None else int(inner.pad_token_id))


def _image_config(network: TwoTower) -> dict[str, Any]:
    tower, projects = network.image_tower, not isinstance(network.image_projection, nn.Identity)
    if isinstance(tower, OpenClipImageTower):
        if projects:
            raise UnheldError("it projects the features of open_clip's image tower once more (`embed_dim`)")
        config = _own_config(tower.config)
        name, arguments = written_model(config["vision_cfg"].get("timm_model_name"))
        own = {"image_size": tower.image_size} | ({"timm_model_name": name} if name else {})
        quick_gelu = None if name else bool(config.get("quick_gelu"))
        return {"vision_cfg": config["vision_cfg"] | own, "timm": arguments, "quick_gelu": quick_gelu}
    if not isinstance(tower, TimmImageTower):
        raise UnheldError(
            f"its image tower {tower.name or kind(tower)!r} is {kind(getattr(tower, 'trunk', tower))}; open_clip "
            "builds image towers of timm and its own"
        )
    trunk: Any = tower.trunk
    if projects and tower.width != trunk.num_features:
        raise UnheldError(f"its timm model widens features behind its pooling ({trunk.num_features} to {tower.width})")
    name, arguments = arguments_of(tower)
    return {
        "vision_cfg": {
            "image_size": tower.image_size,
            "timm_model_name": name,
            "timm_model_pretrained": False,
            "timm_pool": "" if projects else pooling(trunk),
            "timm_proj": "linear" if projects else "none",
        },
        "timm": arguments,
    }


def _own_config(config: TowerConfig | None) -> dict[str, Any]:
    import open_clip

    if config is None or config.kwargs:
        raise UnheldError(
            f"its open_clip tower was built with {config and config.kwargs}, which no configuration names"
        )
    found: dict[str, Any] = open_clip.get_model_config(resolve_model_name(config.model))
    return found


def _text_config(network: TwoTower) -> dict[str, Any]:
    tower, trunk = network.text_tower, getattr(network.text_tower, "trunk", None)
    if isinstance(tower, LocalTextTransformer):
        if is_bag_of_words(tower):
            require_linear(tower, network.tokenizer)
            return {"text_cfg": _encoder("bert", network)}
        require_last_position(tower)
        return {"text_cfg": _local_text(tower), "quick_gelu": False}
    if isinstance(tower, OpenClipTextTower) and type(trunk).__name__ == "TextTransformer":
        config = _own_config(tower.config)
        text = config["text_cfg"] | {"context_length": tower.context_length, "proj_type": "linear"}
        return {"text_cfg": text, "quick_gelu": bool(config.get("quick_gelu"))}
    encoder = getattr(getattr(trunk, "config", None), "model_type", None)
    if isinstance(tower, HfTextTower) and tower.mask_padding and encoder in ("bert", "roberta", "xlm-roberta"):
        return {"text_cfg": _encoder(encoder, network)}
    raise UnheldError(
        f"its text tower is {kind(trunk or tower)}; open_clip builds its own text transformer, and BERT or RoBERTa of "
        "transformers with the mean over tokens"
    )


def _encoder(name: str, network: TwoTower) -> dict[str, Any]:
    """An encoder of transformers, averaged over its tokens."""
    return {
        "hf_model_name": name,
        "hf_model_pretrained": False,
        "hf_pooler_type": "mean_pooler",
        "hf_proj_type": None if isinstance(network.text_projection, nn.Identity) else "linear",
        "context_length": network.context_length,
    }


def _local_text(tower: LocalTextTransformer) -> dict[str, Any]:
    blocks: Any = tower.blocks
    hidden = blocks[0].up.out_features if len(blocks) else tower.width
    return {
        "context_length": tower.context_length,
        "vocab_size": tower.vocab_size,
        "width": tower.width,
        "heads": blocks[0].heads if len(blocks) else 1,
        "layers": len(blocks),
        "mlp_ratio": hidden / tower.width,
        "pad_id": tower.pad_id,
        "no_causal_mask": True,
        "pool_type": "last",
        "proj_type": "linear",
    }


def _image_weights(network: TwoTower) -> dict[str, Tensor]:
    tower = network.image_tower
    prefix = "visual." if isinstance(tower, OpenClipImageTower) else "visual.trunk."
    weights = {prefix + name: value for name, value in tower.trunk.state_dict().items()}  # type: ignore[union-attr]
    for name, value in network.image_projection.state_dict().items():
        weights[f"visual.head.proj.{name}"] = value
    return weights


def _text_weights(network: TwoTower) -> dict[str, Tensor]:
    tower, projection = network.text_tower, network.text_projection
    if isinstance(tower, LocalTextTransformer) and not is_bag_of_words(tower):
        weights = _local_weights(tower)
        head = composed(projection, torch.eye(tower.width))[0]
        return weights | {"text.text_projection": head.T}
    trunk: Any = getattr(tower, "trunk", None)
    if isinstance(tower, HfTextTower | LocalTextTransformer):
        state = bert_weights(tower) if isinstance(tower, LocalTextTransformer) else trunk.state_dict()
        state = {name: value for name, value in state.items() if not name.startswith("pooler.")}
        weights = {f"text.transformer.{name}": value for name, value in state.items()}
        return weights | {f"text.proj.{name}": value for name, value in projection.state_dict().items()}
    weights = {f"text.{name}": value for name, value in trunk.state_dict().items() if "text_projection" not in name}
    weight, bias = composed(projection, *open_clip_head(trunk))
    if isinstance(trunk.text_projection, nn.Linear):
        return weights | {"text.text_projection.weight": weight, "text.text_projection.bias": bias}
    return weights | {"text.text_projection": weight.T}


def _local_weights(tower: LocalTextTransformer) -> dict[str, Tensor]:
    state = tower.state_dict()
    weights = {"text.token_embedding.weight": token_table(tower)}
    weights["text.positional_embedding"] = state["position_embedding"]
    names = {"norm1.": "ln_1.", "norm2.": "ln_2.", "qkv.": "attn.in_proj_", "out.": "attn.out_proj."}
    names |= {"up.": "mlp.c_fc.", "down.": "mlp.c_proj."}
    for number in range(len(tower.blocks)):
        for name, theirs in names.items():
            for part in ("weight", "bias"):
                target = f"text.transformer.resblocks.{number}.{theirs}{part}"
                weights[target] = state[f"blocks.{number}.{name}{part}"]
    scale = state["norm.weight"]
    return weights | {"text.ln_final.weight": scale, "text.ln_final.bias": state.get("norm.bias", 0 * scale)}


def _is_causal(network: TwoTower) -> bool:
    """Whether a text tower of open_clip sees nothing behind the end of a text, which it pools."""
    trunk = getattr(network.text_tower, "trunk", None)
    return getattr(trunk, "attn_mask", None) is not None


def _pad_like(network: TwoTower, pad_id: int, size: int, weights: dict[str, Tensor], settings: dict[str, Any]) -> None:
    """Give a padding token that the written tokenizer has for itself the embedding of ours."""
    name = "text.token_embedding.weight"
    if pad_id in (network.tokenizer.pad_id, network.tokenizer.eos_id) or name not in weights:
        return
    table = weights[name]
    table = torch.cat([table, table.new_zeros(max(0, size - len(table)), table.shape[1])])
    table[pad_id] = table[network.tokenizer.pad_id]
    weights[name], settings["vocab_size"], settings["pad_id"] = table, len(table), pad_id


def _write_timm(network: TwoTower, image: dict[str, Any], folder: Path) -> None:
    if not image.get("timm"):
        return
    folder.mkdir()
    trunk: Any = network.image_tower.trunk
    trunk = getattr(trunk, "trunk", trunk)  # open_clip's wrapper
    size = [3, network.image_size, network.image_size]
    tower = network.image_tower
    _write_json(
        folder / "config.json",
        {
            "architecture": image["vision_cfg"]["timm_model_name"],
            "num_classes": 0,
            "num_features": trunk.num_features,
            "model_args": image["timm"],
            "pretrained_cfg": {"input_size": size, "mean": tower.mean, "std": tower.std, "num_classes": 0},
        },
    )
    image["vision_cfg"]["timm_model_name"] = f"local-dir:{folder.absolute()}"


def _write_encoder(network: TwoTower, text: dict[str, Any], folder: Path) -> None:
    tower, config = network.text_tower, None
    if isinstance(tower, HfTextTower):
        config = tower.trunk.config
    elif isinstance(tower, LocalTextTransformer) and is_bag_of_words(tower):
        config = bert_config(tower)
    if config is not None:
        config.save_pretrained(folder)  # type: ignore[union-attr, operator]
        text["text_cfg"]["hf_model_name"] = str(folder.absolute())


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
