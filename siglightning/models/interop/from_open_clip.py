"""Models of open_clip: a built-in name with its weights, a folder as open_clip saves it, or a file of weights."""

from pathlib import Path
from typing import Any

import open_clip

from siglightning.models.interop.checkpoint import Checkpoint, with_scalars
from siglightning.models.interop.files import read_tensors
from siglightning.models.open_clip_towers import create_model
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
    weights = create_model(TowerConfig(f"open_clip:{model}", tag or True), {}).state_dict()
    return _checkpoint(name, model, weights, None)


def from_open_clip_folder(folder: Path) -> Checkpoint:
    """Read a folder with ``open_clip_config.json`` and weights beside it, as open_clip itself writes it.

    Raises:
        ValueError: there are no weights, or they are damaged or need code to be read.
    """
    files = sorted(folder.glob("open_clip_*.safetensors")) + sorted(folder.glob("open_clip_pytorch_model.bin"))
    if not files:
        raise ValueError(f"{folder} has {CONFIG} but no weights; expected open_clip_model.safetensors beside it.")
    return _checkpoint(str(folder), f"local-dir:{folder}", _read(files[0]), folder)


def from_open_clip_file(path: Path, architecture: str) -> Checkpoint:
    """Read a file of weights of an open_clip model, safetensors or a state dictionary of torch.

    Args:
        path: the file.
        architecture: open_clip's name of the model, or the path of its JSON config.

    Raises:
        ValueError: no such file or architecture, or a file that is damaged or needs code to be read.
    """
    return _checkpoint(str(path), architecture, _read(path), path)


def _checkpoint(source: str, model: str, weights: dict[str, Any], path: Path | None) -> Checkpoint:
    tower = f"open_clip:{model}"
    arguments = {"image_tower": TowerConfig(tower), "text_tower": TowerConfig(tower)}
    return Checkpoint(source, "open_clip", arguments, dict(with_scalars(weights, _PREFIXES)), path)


def _read(path: Path) -> dict[str, Any]:
    """Weights with those of the text tower under ``text.``, where early models have them at the top."""
    weights = {name: tensor for name, tensor in read_tensors(path).items() if name not in _NO_WEIGHTS}
    if "positional_embedding" not in weights:
        return weights
    return {f"text.{name}" if name.startswith(_CLIP_TEXT) else name: value for name, value in weights.items()}


def is_model_name(name: str) -> bool:
    """Whether open_clip has a model of this name."""
    return name.partition("@")[0].replace("/", "-") in open_clip.list_models()
