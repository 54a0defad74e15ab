"""Folders of our own, as ``siglightning export --format safetensors`` writes them: arguments of the network, weights.

``config.json`` is data: what a tower is, its name and its arguments say, and no tower is fetched with weights or code.
"""

import json
from pathlib import Path

from siglightning.batch import Resizing
from siglightning.models.foreign import refusing
from siglightning.models.interop.checkpoint import Checkpoint, Preparation
from siglightning.models.interop.files import read_tensors
from siglightning.models.interop.from_run import arguments_of

CONFIG, WEIGHTS, MARK = "config.json", "model.safetensors", "siglightning"
# Folders in it that hold what the arguments name.
TOWERS = ("image_tower", "text_tower")
TOKENIZER = "tokenizer"


def is_exported(folder: Path) -> bool:
    """Whether a folder's ``config.json`` is ours, and not that of transformers."""
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(content, dict) and MARK in content


def from_safetensors(folder: Path) -> Checkpoint:
    """Read a folder that was written here.

    Raises:
        ValueError: a configuration that is none, or weights that are missing or damaged.
    """
    with refusing(folder / CONFIG):
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        given = dict(content["network"])
        preparation = Preparation(tuple(content["mean"]), tuple(content["std"]), Resizing(**content["resizing"]))
        for name in TOWERS:
            given[name] = given[name] | {"name": _within(given[name]["name"], folder)}
        if given.get("tokenizer"):
            given["tokenizer"] = _within(str(given["tokenizer"]), folder)
        arguments = arguments_of(given)
    file = folder / WEIGHTS
    return Checkpoint(str(folder), "safetensors", arguments, read_tensors(file), folder, (file,), preparation)


def _within(name: str, folder: Path) -> str:
    """A tower's or tokenizer's name; of one that lies in the folder, with its place."""
    scheme, colon, rest = name.rpartition(":")
    is_inside = rest.partition("/")[0] in (*TOWERS, TOKENIZER) and (folder / rest).exists()
    return f"{scheme}{colon}{folder / rest}" if is_inside else name
