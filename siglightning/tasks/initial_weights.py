"""Begin a run with the weights of another one: a higher resolution, more blocks, a classifier on a pre-trained tower.

What is carried over is decided by parts: the image tower; the text side (text tower and both projections); t'; b; the
classifier. Each part is taken whole or not at all, and all of it is told. The image tower must fit. A part that only
the model has begins as it was built, one that only the checkpoint has is left out; the classifier is taken where both
have the same classes in the same order. Position embeddings are resized where the pictures' size changes. Everything
else is refused.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule
from torch import Tensor

from siglightning.models import ImageEncoder
from siglightning.models.lora import is_adapter
from siglightning.models.positions import PatchGrid, is_position_table, old_side, resize_positions
from siglightning.runtime.checkpoint import (
    best_intact,
    list_differences,
    newest_intact,
    read_weights,
    state_differences,
)
from siglightning.runtime.files import file_sha256
from siglightning.runtime.rundir import RunDir
from siglightning.tasks.classifier import ClassifierTask

TOWER, TEXT, ADAPTERS, CLASSIFIER, REST = "image tower", "text side", "adapters", "classifier", "rest"
_TOWER_PREFIX = "network.image_tower."
_PREFIXES = {
    _TOWER_PREFIX: TOWER,
    "network.text_tower.": TEXT,
    "network.image_projection.": TEXT,
    "network.text_projection.": TEXT,
    "network.log_scale": "t'",
    "network.bias": "b",
    "head.": CLASSIFIER,
}
_MAY_BE_NEW = (TEXT, "t'", "b", ADAPTERS)
_MAY_STAY_BEHIND = (TEXT, "t'", "b")


@dataclass
class InitialWeights:
    """What a model takes over.

    Attributes:
        checkpoint: the file.
        global_step: optimizer steps that its weights have seen.
        weights: what is loaded, by the model's names.
        taken: tensors by part.
        resized: tables of positions, and their grids.
        as_built: parts that the checkpoint does not have, with their tensors.
        left_out: parts that the model does not have, likewise.
    """

    checkpoint: Path
    global_step: int
    weights: dict[str, Tensor] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    resized: list[str] = field(default_factory=list)
    as_built: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)

    def lines(self) -> list[str]:
        """What to tell the user."""
        told = {
            "taken": [self._value_or_count(part, count) for part, count in self.taken.items()],
            "resized": self.resized,
            "begins as built": [f"{part} ({_tensors(count)})" for part, count in self.as_built.items()],
            "left out": [f"{part} ({_tensors(count)})" for part, count in self.left_out.items()],
        }
        head = f"Beginning with the weights of {self.checkpoint}, step {self.global_step}"
        return [head, *(f"  {word}: {', '.join(items)}" for word, items in told.items() if items)]

    def record(self) -> dict[str, Any]:
        """The same as JSON values, for the run directory."""
        return {
            "checkpoint": str(self.checkpoint.resolve()),
            "sha256": file_sha256(self.checkpoint),
            "global_step": self.global_step,
            "taken": self.taken,
            "resized": self.resized,
            "begins_as_built": self.as_built,
            "left_out": self.left_out,
        }

    def _value_or_count(self, part: str, count: int) -> str:
        scalar = {"t'": "network.log_scale", "b": "network.bias"}.get(part)
        return f"{part} ({_tensors(count)})" if scalar is None else f"{part} = {self.weights[scalar].item():.5g}"


def find_checkpoint(path: Path) -> Path:
    """The checkpoint file that a path stands for: a file itself; of a run directory its best, else its newest.

    Raises:
        ValueError: there is nothing there, or no checkpoint in the directory is intact.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise ValueError(
            f"init_from expects a checkpoint file or the directory of a run, got {str(path)!r}, which does not exist."
        )
    folder = RunDir(path).checkpoints
    found = newest_intact(folder)
    chosen = best_intact(folder) or found.path
    if chosen is None:
        reasons = f" ({' '.join(found.passed_over)})" if found.passed_over else ""
        raise ValueError(
            f"init_from expects a run with a checkpoint, got {path}, which has none that is intact{reasons}. Give the "
            "directory of a trained run, the one with config.yaml, or a checkpoint file."
        )
    return chosen


def begin_from(task: LightningModule, path: str | Path) -> InitialWeights:
    """Load the weights of another run into a task that has not been trained. Step, optimizer and schedule stay new.

    Call it before ``Trainer.fit``. A classifier whose classes the data tell later is offered, and taken then if its
    classes are the same.

    Args:
        task: whose weights are replaced. It may have other parts than the checkpoint, see the head of this file.
        path: a checkpoint file, or a run directory, which stands for its best or else its newest intact checkpoint.

    Returns:
        What was taken, resized and left out.

    Raises:
        ValueError: no such checkpoint, or weights that do not fit; the message names the first differences, or the
            sizes of patches where those differ.
        DamagedCheckpointError: the file is damaged or holds more than data.
    """
    checkpoint = find_checkpoint(Path(path))
    content = read_weights(checkpoint)
    source: dict[str, Tensor] = content["state_dict"]
    begun = InitialWeights(checkpoint, int(content.get("global_step", 0)))
    network = getattr(task, "network", None)
    grid = PatchGrid.of(network.image_tower) if isinstance(network, ImageEncoder) else None
    _refuse_other_patches(source, grid, checkpoint)
    model = task.state_dict()
    if any(is_adapter(name) for name in source) and not any(is_adapter(name) for name in model):
        raise ValueError(f"{checkpoint} has adapters, the model has none. Set the network's `lora` as in its own run.")
    differences = _match(model, source, grid, begun)
    if differences:
        raise ValueError(
            f"{checkpoint} does not fit the model: {list_differences(differences)}. Take the network of its own run "
            "(config.yaml of its run directory); another image size is all that may differ in a tower."
        )
    task.load_state_dict(begun.weights, strict=False)
    _offer_classifier(task, source, list(content.get("class_names") or ()), begun)
    return begun


def _match(
    model: Mapping[str, Tensor], source: Mapping[str, Tensor], grid: PatchGrid | None, begun: InitialWeights
) -> list[str]:
    """Fill ``begun`` part by part; what does not fit, in words."""
    names = {name: _source_name(name, source) for name in model}
    mine = _by_part(names)
    theirs = _by_part(source)
    differences: list[str] = []
    for part in sorted({*mine, *theirs} - {CLASSIFIER}, key=[*dict.fromkeys(_PREFIXES.values()), ADAPTERS, REST].index):
        if part not in theirs and part in _MAY_BE_NEW:
            begun.as_built[part] = len(mine[part])
        elif part not in mine and part in _MAY_STAY_BEHIND:
            begun.left_out[part] = len(theirs[part])
        else:
            wanted = {name: model[name] for name in mine.get(part, ())}
            given = {name: source[names[name]] for name in wanted if names[name] in source}
            used = {names[name] for name in given}
            given |= {name: source[name] for name in theirs.get(part, ()) if name not in used}
            _resize(wanted, given, grid, begun)
            differences += state_differences(wanted, given)
            begun.weights |= given
            begun.taken[part] = len(given)
    return differences


def _by_part(names: Iterable[str]) -> dict[str, list[str]]:
    parts: dict[str, list[str]] = {}
    for name in names:
        fitting = (part for prefix, part in _PREFIXES.items() if name.startswith(prefix))
        parts.setdefault(ADAPTERS if is_adapter(name) else next(fitting, REST), []).append(name)
    return parts


def _source_name(name: str, source: Mapping[str, Tensor]) -> str:
    """What a checkpoint without adapters calls a layer to which the model has added some."""
    plain = name.replace(".base_layer.", ".")
    return plain if name not in source and plain in source else name


def _resize(
    wanted: Mapping[str, Tensor], given: dict[str, Tensor], grid: PatchGrid | None, begun: InitialWeights
) -> None:
    """Resize tables of positions in place."""
    for name, tensor in wanted.items():
        table = given.get(name)
        inner = name.removeprefix(_TOWER_PREFIX)
        if table is None or grid is None or inner == name or table.shape == tensor.shape or not is_position_table(name):
            continue
        before = old_side(table, tensor, grid.side)
        if before is not None:
            given[name] = resize_positions(table, before, grid.side)
            begun.resized.append(f"{name}, {before} x {before} to {grid.side} x {grid.side} patches")


def _refuse_other_patches(source: Mapping[str, Tensor], grid: PatchGrid | None, checkpoint: Path) -> None:
    weight = None if grid is None else source.get(_TOWER_PREFIX + grid.weight)
    if grid is None or weight is None or weight.ndim != 4 or weight.shape[-1] == grid.patch:
        return
    raise ValueError(
        f"{checkpoint} has patches of {weight.shape[-1]} pixels, the model of {grid.patch}: position embeddings can be "
        f"resized, patches cannot. Take a tower with patches of {weight.shape[-1]} pixels at any image_size."
    )


def _offer_classifier(
    task: LightningModule, source: Mapping[str, Tensor], class_names: list[str], begun: InitialWeights
) -> None:
    head = {name.removeprefix("head."): value.clone() for name, value in source.items() if name.startswith("head.")}
    if not isinstance(task, ClassifierTask):
        begun.left_out |= {CLASSIFIER: len(head)} if head else {}
    elif head:
        task.offer_head(class_names, head)
    else:
        begun.as_built[CLASSIFIER] = 2


def _tensors(count: int) -> str:
    return f"{count} tensor{'s' if count != 1 else ''}"
