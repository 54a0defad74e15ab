"""Export to safetensors: the weights of the whole network and the arguments that build it, for this package.

The one format that holds every network: adapters, factored embeddings and towers of any library included.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision.transforms import v2

from siglightning.models.export.reloaded import Outputs, Reloaded
from siglightning.models.lora import Lora
from siglightning.models.saliency import SaliencyMasking
from siglightning.models.towers import TowerConfig
from siglightning.models.two_tower import TwoTower

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer"
_TOWERS = ("image_tower", "text_tower")
_GROUPS = {"lora": Lora, "saliency": SaliencyMasking}


def build(arguments: dict[str, Any], folder: Path | None = None) -> TwoTower:
    """A network from its arguments as a configuration file holds them, at random: weights come from a checkpoint.

    Args:
        arguments: of :class:`~siglightning.models.TwoTower`.
        folder: where files that the arguments name may lie.

    Raises:
        ValueError: arguments that the network does not take.
    """
    given = dict(arguments)
    for name in _TOWERS:
        config = TowerConfig(**given[name]) if isinstance(given[name], dict) else TowerConfig.of(given[name])
        given[name] = TowerConfig(_found(config.name, folder), False, config.kwargs)
    for name, kind in _GROUPS.items():
        if isinstance(given.get(name), dict):
            given[name] = kind(**given[name])
    if given.get("tokenizer"):
        given["tokenizer"] = _found(given["tokenizer"], folder)
    try:
        network = TwoTower(**given)
    except TypeError as error:
        raise ValueError(f"These are no arguments of TwoTower: {error}.") from error
    _restore_normalisation(network, arguments["image_tower"])
    return network


def check(network: TwoTower) -> None:
    """Refuse nothing."""


def write(network: TwoTower, folder: Path, arguments: dict[str, Any]) -> None:
    """Write weights, arguments, and copies of the files that the arguments name.

    Args:
        network: the trained network.
        folder: an existing one.
        arguments: of :class:`~siglightning.models.TwoTower`, as a configuration file holds them.
    """
    from safetensors.torch import save_file

    kept = json.loads(json.dumps(arguments, default=_plain))
    for name in _TOWERS:
        tower = kept[name] if isinstance(kept[name], dict) else {"name": kept[name]}
        kept[name] = tower | {"name": _carried(tower["name"], folder, name), "pretrained": False}
    if kept.get("tokenizer"):
        kept["tokenizer"] = _carried(kept["tokenizer"], folder, TOKENIZER)
    tower = network.image_tower
    content = {"siglightning": "TwoTower", "network": kept, "mean": list(tower.mean), "std": list(tower.std)}
    (folder / CONFIG).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    weights = {name: value.detach().contiguous().clone() for name, value in network.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def load(folder: Path | str) -> TwoTower:
    """The network of a folder that was written here, in evaluation mode.

    Raises:
        ValueError: a folder of another kind, or weights that do not fit its configuration.
    """
    from safetensors.torch import load_file

    folder = Path(folder)
    try:
        content = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        arguments = content["network"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"Expected a folder written by `siglightning export --format safetensors`, got {str(folder)!r}: {error}."
        ) from error
    network = build(arguments, folder)
    network.image_tower.mean, network.image_tower.std = tuple(content["mean"]), tuple(content["std"])
    try:
        network.load_state_dict(load_file(folder / WEIGHTS))
    except Exception as error:  # safetensors raises an error of its own, torch RuntimeError
        first = str(error).strip().splitlines()
        raise ValueError(f"{folder / WEIGHTS} does not fit its {CONFIG}: {' '.join(first[:3])}") from error
    return network.eval()


def reload(folder: Path) -> Reloaded:
    """Read a folder with nothing but this package's models."""
    network = load(folder)
    size = [network.image_size, network.image_size]

    def pixels(pictures: Sequence[Tensor]) -> Tensor:
        resized = [v2.functional.resize(p, size, v2.InterpolationMode.BICUBIC, antialias=True) for p in pictures]
        return network.normalise(torch.stack(resized))

    def outputs(values: Tensor, ids: Tensor) -> Outputs:
        with torch.no_grad():
            image, text = network(values, ids)
            bias = 0.0 if network.bias is None else network.bias
            return Outputs(image, text, network.log_scale.exp() * image @ text.T + bias)

    return Reloaded(pixels, network.tokenizer, outputs, network.tokenizer.pad_id)


def _restore_normalisation(network: TwoTower, tower: Any) -> None:
    """Mean and standard deviation of weights of open_clip, which come with their tag and not with the model."""
    tag = tower.get("pretrained") if isinstance(tower, dict) else None
    if network.image_tower.name.startswith("open_clip:") and tag:
        import open_clip

        name = network.image_tower.name.partition(":")[2]
        tags = open_clip.list_pretrained_tags_by_model(name)
        found = open_clip.get_pretrained_cfg(name, tags[0] if tag is True and tags else str(tag)) or {}
        network.image_tower.mean = tuple(found.get("mean") or network.image_tower.mean)
        network.image_tower.std = tuple(found.get("std") or network.image_tower.std)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)


def _carried(name: str, folder: Path, inner: str) -> str:
    """The name of a tower or tokenizer; of a local file or folder a copy is made, which is named instead."""
    scheme, colon, rest = name.rpartition(":")
    path = Path(rest).expanduser()
    if not path.exists() or not (path.is_absolute() or path.parent != Path() or path.suffix):
        return name
    target = folder / inner
    target.mkdir()
    for file in [path] if path.is_file() else sorted(path.iterdir()):
        if file.is_file() and file.suffix in (".json", ".txt", ".model"):  # what describes; weights are ours
            shutil.copy(file, target)
    return f"{scheme}{colon}{inner}" + (f"/{path.name}" if path.is_file() else "")


def _found(name: str, folder: Path | None) -> str:
    scheme, colon, rest = name.rpartition(":")
    inside = folder is not None and rest.partition("/")[0] in (*_TOWERS, TOKENIZER) and (folder / rest).exists()
    return f"{scheme}{colon}{folder / rest}" if inside and folder is not None else name
