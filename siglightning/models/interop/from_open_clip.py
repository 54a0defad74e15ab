"""Models of open_clip: a built-in name with its weights, a folder as open_clip saves it, or a file of weights."""

from pathlib import Path
from typing import Any

import open_clip
from open_clip.transform import PreprocessCfg, merge_preprocess_dict

from siglightning.models.interop.checkpoint import Checkpoint, Preparation, with_scalars
from siglightning.models.interop.files import read_tensors
from siglightning.models.open_clip_towers import create_model, resizing_of, resolve_model_name
from siglightning.models.towers import TowerConfig

CONFIG = "open_clip_config.json"
_PREFIXES = {"visual.": "image_tower.trunk.", "text.": "text_tower.trunk."}
_CLIP_TEXT = ("positional_embedding", "token_embedding.", "transformer.", "ln_final.", "text_projection")
_NO_WEIGHTS = ("text.transformer.embeddings.position_ids",)  # older files list it among the weights


def from_open_clip(name: str) -> Checkpoint:
    """Read a model by its name in open_clip, with the weights that open_clip lists for it.

    Args:
        name: such as ``ViT-B-16-SigLIP``, or ``ViT-B-16-SigLIP@webli`` for certain weights.

    Raises:
        ValueError: no such model, or weights that cannot be had.
    """
    model, _, tag = name.partition("@")
    tower = TowerConfig(f"open_clip:{model}", tag or True)
    weights = create_model(tower, {}).state_dict()
    return _checkpoint(name, model, weights, preparation=preparation_of(tower))


def preparation_of(tower: TowerConfig) -> Preparation | None:
    """How open_clip prepares pictures for weights that it lists; they come with the tag and not with the model.

    Args:
        tower: of open_clip, with the tag of its weights or ``True`` for the first.

    Returns:
        ``None`` where open_clip has no list for it: a folder, a file, or no weights.
    """
    if not tower.pretrained or ":" in tower.model:
        return None
    name = resolve_model_name(tower.model)
    tags = open_clip.list_pretrained_tags_by_model(name)
    tag = tags[0] if tower.pretrained is True and tags else str(tower.pretrained)
    listed = open_clip.get_pretrained_cfg(name, tag)
    if not listed:
        return None
    settings = merge_preprocess_dict(PreprocessCfg(), listed)
    return Preparation(tuple(settings["mean"]), tuple(settings["std"]), resizing_of(settings))


def from_open_clip_folder(folder: Path) -> Checkpoint:
    """Read a folder with ``open_clip_config.json`` and weights beside it, as open_clip itself writes it.

    Raises:
        ValueError: there are no weights, or they are damaged or need code to be read.
    """
    files = sorted(folder.glob("open_clip_*.safetensors")) + sorted(folder.glob("open_clip_pytorch_model.bin"))
    if not files:
        raise ValueError(f"{folder} has {CONFIG} but no weights; expected open_clip_model.safetensors beside it.")
    return _checkpoint(str(folder), f"local-dir:{folder}", _read(files[0]), path=folder, files=(files[0],))


def from_open_clip_file(path: Path, architecture: str) -> Checkpoint:
    """Read a file of weights of an open_clip model, safetensors or a state dictionary of torch.

    Args:
        path: the file.
        architecture: open_clip's name of the model, or the path of its JSON config.

    Raises:
        ValueError: no such file or architecture, or a file that is damaged or needs code to be read.
    """
    return _checkpoint(str(path), architecture, _read(path), path=path, files=(path,))


def _checkpoint(source: str, model: str, weights: dict[str, Any], **known: Any) -> Checkpoint:
    tower = TowerConfig(f"open_clip:{model}")
    arguments = {"image_tower": tower, "text_tower": tower}
    return Checkpoint(source, "open_clip", arguments, dict(with_scalars(weights, _PREFIXES)), **known)


def _read(path: Path) -> dict[str, Any]:
    """Weights with those of the text tower under ``text.``, where early models have them at the top."""
    weights = {name: tensor for name, tensor in read_tensors(path).items() if name not in _NO_WEIGHTS}
    if "positional_embedding" not in weights:
        return weights
    return {f"text.{name}" if name.startswith(_CLIP_TEXT) else name: value for name, value in weights.items()}


def is_model_name(name: str) -> bool:
    """Whether open_clip has a model of this name."""
    return name.partition("@")[0].replace("/", "-") in open_clip.list_models()
