"""Begin a run with the weights of another one: a higher resolution, more blocks, a classifier on a pre-trained tower.

The other one may be a model of another library, see :mod:`siglightning.models.interop`.

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

from siglightning.models import ImageEncoder, TwoTower
from siglightning.models.foreign import refusing
from siglightning.models.interop import open_checkpoint, require_source
from siglightning.models.interop.from_run import is_run
from siglightning.models.lora import is_adapter
from siglightning.models.positions import PatchGrid, resize_tables
from siglightning.runtime.checkpoint import find_checkpoint, read_weights
from siglightning.runtime.differences import list_differences, state_differences
from siglightning.runtime.files import file_sha256
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
BIAS_RULE = "b = -log(B - 1) of the batch, since the checkpoint has none (softmax)"
_MAY_BE_NEW = (TEXT, "t'", "b", ADAPTERS)
_MAY_STAY_BEHIND = (TEXT, "t'", "b")


@dataclass
class InitialWeights:
    """What a model takes over.

    Attributes:
        checkpoint: the file or folder, or the name of a model.
        kind: ``run`` for one of ours, else the library that it is of.
        global_step: optimizer steps that the weights of a run have seen.
        weights: what is loaded, by the model's names.
        taken: tensors by part.
        resized: tables of positions, and their grids.
        as_built: parts that the checkpoint does not have, with their tensors.
        left_out: parts that the model does not have, likewise.
        bias_by_rule: b is set by the batch, since the checkpoint has t' and no b, as a softmax leaves it.
    """

    checkpoint: Path | str
    kind: str = "run"
    global_step: int | None = None
    weights: dict[str, Tensor] = field(default_factory=dict)
    taken: dict[str, int] = field(default_factory=dict)
    resized: list[str] = field(default_factory=list)
    as_built: dict[str, int] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)
    bias_by_rule: bool = False

    def lines(self) -> list[str]:
        """What to tell the user."""
        told = {
            "taken": [self._value_or_count(part, count) for part, count in self.taken.items()],
            "resized": self.resized,
            "begins as built": [f"{part} ({_tensors(count)})" for part, count in self.as_built.items()],
            "begins by rule": [BIAS_RULE] if self.bias_by_rule else [],
            "left out": [f"{part} ({_tensors(count)})" for part, count in self.left_out.items()],
        }
        origin = f"step {self.global_step}" if self.kind == "run" else f"of {self.kind}"
        head = f"Beginning with the weights of {self.checkpoint}, {origin}"
        return [head, *(f"  {word}: {', '.join(items)}" for word, items in told.items() if items)]

    def record(self) -> dict[str, Any]:
        """The same as JSON values, for the run directory."""
        return {
            "checkpoint": str(self.checkpoint.resolve() if isinstance(self.checkpoint, Path) else self.checkpoint),
            "kind": self.kind,
            "sha256": file_sha256(Path(self.checkpoint)) if Path(self.checkpoint).is_file() else None,
            "global_step": self.global_step,
            "taken": self.taken,
            "resized": self.resized,
            "begins_as_built": self.as_built,
            "bias_by_rule": self.bias_by_rule,
            "left_out": self.left_out,
        }

    def _value_or_count(self, part: str, count: int) -> str:
        scalar = {"t'": "network.log_scale", "b": "network.bias"}.get(part)
        return f"{part} ({_tensors(count)})" if scalar is None else f"{part} = {self.weights[scalar].item():.5g}"


def begin_from(task: LightningModule, path: str | Path) -> InitialWeights:
    """Load the weights of another run or library into a task that has not been trained; step and optimizer stay new.

    Call it before ``Trainer.fit``. A classifier whose classes the data tell later is offered, and taken then if its
    classes are the same.

    Args:
        task: whose weights are replaced. It may have other parts than the checkpoint, see the head of this file.
        path: a checkpoint file, or a run directory, which stands for its best or else its newest intact checkpoint;
            or a two-tower model of another library, see :func:`~siglightning.models.interop.open_checkpoint`, with a
            scheme (``hf:``, ``open_clip:``) where it is a name.

    Returns:
        What was taken, resized and left out.

    Raises:
        ValueError: no such checkpoint, or weights that do not fit; the message names the first differences, or the
            sizes of patches where those differ.
        DamagedCheckpointError: the file is damaged or holds more than data.
    """
    with refusing(path):
        return _begin(task, path)


def _begin(task: LightningModule, path: str | Path) -> InitialWeights:
    network = getattr(task, "network", None)
    begun, source, class_names = _read(path, network)
    checkpoint = begun.checkpoint
    grid = PatchGrid.of(network.image_tower) if isinstance(network, ImageEncoder) else None
    _refuse_other_patches(source, grid, checkpoint)
    model = task.state_dict()
    if any(is_adapter(name) for name in source) and not any(is_adapter(name) for name in model):
        raise ValueError(f"{checkpoint} has adapters, the model has none. Set the network's `lora` as in its own run.")
    differences = _match(model, source, grid, begun)
    if differences:
        raise ValueError(
            f"{checkpoint} does not fit the model: {list_differences(differences)}. {_remedy(begun)}; another image "
            "size is all that may differ in a tower."
        )
    task.load_state_dict(begun.weights, strict=False)
    _offer_classifier(task, source, class_names, begun)
    if isinstance(network, TwoTower) and network.bias is not None and "t'" in begun.taken and "b" in begun.as_built:
        network.take_bias_from_batch()
        begun.bias_by_rule = begun.as_built.pop("b") > 0
    return begun


def _read(path: str | Path, network: Any) -> tuple[InitialWeights, dict[str, Tensor], list[str]]:
    """What is begun with, its weights by the names of a task, and the classes of its classifier."""
    require_source(str(path), "init_from")
    if is_run(Path(path)):
        checkpoint = find_checkpoint(Path(path))
        content = read_weights(checkpoint)
        begun = InitialWeights(checkpoint, global_step=int(content.get("global_step", 0)))
        return begun, content["state_dict"], list(content.get("class_names") or ())
    tower = network.image_tower.name if isinstance(network, ImageEncoder) else ""
    architecture = tower.removeprefix("open_clip:") if tower.startswith("open_clip:") else None
    found = open_checkpoint(path, architecture=architecture)
    begun = InitialWeights(found.path or found.source, found.kind)
    return begun, {f"network.{name}": tensor for name, tensor in found.weights.items()}, []


def _remedy(begun: InitialWeights) -> str:
    if begun.kind == "run":
        return "Take the network of its own run (config.yaml of its run directory)"
    return f"Take its own network (class_path: siglightning.models.load_two_tower, source: {begun.checkpoint})"


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
            if part == TOWER and grid is not None:
                begun.resized += resize_tables(wanted, given, grid)
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


def _refuse_other_patches(source: Mapping[str, Tensor], grid: PatchGrid | None, checkpoint: Path | str) -> None:
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
