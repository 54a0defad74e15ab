"""Export to safetensors: the weights of the whole network and the arguments that build it, for this package.

The one format that holds every network: factored embeddings and towers of any library included. What the arguments name
on this machine (folders and files of towers and tokenizer) is copied into the folder, less its weights. A copy of
open_clip's that names its place names its new one, see :func:`relocate`.
"""

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from siglightning.models.export import open_clip_format
from siglightning.models.export.pictures import preprocessor_config, squares
from siglightning.models.export.reloaded import Outputs, Reloaded
from siglightning.models.interop import build, open_checkpoint
from siglightning.models.interop.from_safetensors import CONFIG, MARK, TOKENIZER, TOWERS, WEIGHTS
from siglightning.models.towers import TowerConfig
from siglightning.models.two_tower import TwoTower

_DESCRIBING = (".json", ".txt", ".model")  # weights are written by us


def check(network: TwoTower) -> None:
    """Refuse nothing."""


def write(network: TwoTower, folder: Path, arguments: dict[str, Any]) -> None:
    """Write weights, arguments, and copies of the files that the arguments name.

    Args:
        network: the trained network.
        folder: an existing one.
        arguments: of :class:`~siglightning.models.TwoTower`.
    """
    from safetensors.torch import save_file

    kept, carried = dict(arguments), _Carried(folder)
    for name in TOWERS:
        tower = TowerConfig.of(kept[name])
        kept[name] = {"name": carried.tower(tower.name, name), "pretrained": False, "kwargs": tower.kwargs}
        if tower.scheme == "package":  # always has its weights, and knows no other way
            kept[name]["pretrained"] = tower.pretrained
    if kept.get("tokenizer"):
        kept["tokenizer"] = carried.tokenizer(kept["tokenizer"])
    image, resizing = network.image_tower, asdict(network.resizing)
    content = {MARK: "TwoTower", "network": kept, "mean": image.mean, "std": image.std, "resizing": resizing}
    text = json.dumps(content, indent=2, ensure_ascii=False, default=_plain)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")
    weights = {name: value.detach().contiguous().clone() for name, value in network.state_dict().items()}
    save_file(weights, folder / WEIGHTS, metadata={"format": "pt"})


def relocate(folder: Path, to: Path) -> bool:
    """Write the path of the folder's future place into copies of open_clip's, where they name themselves.

    Args:
        folder: where it lies now.
        to: where it will lie.

    Returns:
        Whether one names itself, and so must be relocated again when the folder is moved.
    """
    copies = [inner for inner in TOWERS if (folder / inner / open_clip_format.CONFIG).is_file()]
    named = [open_clip_format.relocate(folder / inner, to / inner) for inner in copies]
    return any(named)


def reload(folder: Path) -> Reloaded:
    """Read a folder as :func:`~siglightning.models.load_two_tower` does, pictures prepared by Pillow."""
    checkpoint = open_checkpoint(folder, "safetensors")
    network = build(checkpoint, {})[0].eval()
    settings = preprocessor_config(network)

    def pixels(pictures: Sequence[Tensor]) -> Tensor:
        return network.normalise(torch.from_numpy(squares(pictures, settings)).permute(0, 3, 1, 2))

    def outputs(values: Tensor, ids: Tensor) -> Outputs:
        with torch.no_grad():
            image, text = network(values, ids)
            bias = 0.0 if network.bias is None else network.bias
            return Outputs(image, text, network.log_scale.exp() * image @ text.T + bias)

    return Reloaded(pixels, network.tokenizer, outputs, network.tokenizer.pad_id)


class _Carried:
    """Copies of local files and folders, each made once: two towers of one folder stay two of one."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._done: dict[Path, str] = {}

    def tower(self, name: str, inner: str) -> str:
        """What to call a tower of transformers or open_clip in the folder; others are known by their name alone."""
        scheme = name.partition(":")[0]
        is_place = scheme == "hf" or (scheme == "open_clip" and (":" in name[10:] or name.endswith(".json")))
        return self._copied(name, inner) if is_place else name

    def tokenizer(self, source: str) -> str:
        return source if source == "clip" else self._copied(source, TOKENIZER)

    def _copied(self, name: str, inner: str) -> str:
        scheme, colon, rest = name.rpartition(":")
        path = Path(rest).expanduser()
        if not rest or not path.exists():
            return name
        place = path.resolve()
        if place not in self._done:
            _copy(path, self._folder / inner)
            relocate(self._folder, self._folder)
            self._done[place] = inner + (f"/{path.name}" if path.is_file() else "")
        return f"{scheme}{colon}{self._done[place]}"


def _copy(path: Path, target: Path) -> None:
    """What describes a tower or tokenizer, a file or a folder; of open_clip's folders also the towers within."""
    target.mkdir()
    if path.is_file():
        shutil.copy(path, target)
        return
    for folder in (path, *(path / inner for inner in TOWERS)):
        for file in sorted(folder.glob("*")):
            if file.is_file() and file.suffix in _DESCRIBING:
                place = target / file.relative_to(path)
                place.parent.mkdir(exist_ok=True)
                shutil.copy(file, place)


def _plain(value: Any) -> Any:
    return asdict(value) if is_dataclass(value) and not isinstance(value, type) else str(value)
