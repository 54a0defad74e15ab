"""``siglightning plan``: what a run will be, without its data and without its hardware."""

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from siglightning.commands.plan.memory import (
    Forecast,
    Shape,
    forecast,
    largest_micro_batch,
    parameter_bytes,
    state_bytes,
)
from siglightning.models import TwoTower
from siglightning.models.footprint import Precision, tower_footprints
from siglightning.models.slices import check_divides
from siglightning.optim import build_optimizer
from siglightning.tasks import ContrastiveTask


@dataclass(frozen=True)
class ModelSize:
    """Parameters of a two-tower model.

    Attributes:
        image: of the image tower and its projection.
        text: of the text tower and its projection.
        token_embedding: of the text tower's token embedding, where it is known by that name.
        total: of all, t' and b included.
        trained: of those that learn.
    """

    image: int
    text: int
    token_embedding: int
    total: int
    trained: int


@dataclass(frozen=True)
class Length:
    """How long a run is.

    Attributes:
        global_batch_size: pairs in a step.
        steps: of the optimizer.
        warmup_steps: of them, with a rising rate.
    """

    global_batch_size: int
    steps: int
    warmup_steps: int

    @property
    def examples_seen(self) -> int:
        """Pairs that all steps see."""
        return self.global_batch_size * self.steps


@dataclass(frozen=True)
class OnDevices:
    """The forecast for a number of devices.

    Attributes:
        devices: how many.
        pairs: on each.
        bytes: on each; ``None`` where the batch cannot be shared out.
        reason: why not.
        micro_batch_size: largest slice within the memory that was asked for; ``None``: not asked, or none fits.
    """

    devices: int
    pairs: int
    bytes: Forecast | None
    reason: str = ""
    micro_batch_size: int | None = None


@dataclass(frozen=True)
class Plan:
    """What a run will be."""

    model: ModelSize
    length: Length
    on_devices: Sequence[OnDevices]


def make_plan(
    task: ContrastiveTask,
    length: Length,
    precision: Precision,
    devices: Sequence[int],
    *,
    stored_features: bool = False,
    memory_bytes: int | None = None,
) -> Plan:
    """Plan a run.

    Args:
        task: with its network on the meta device.
        length: of the run.
        precision: of the run.
        devices: numbers of devices to plan for.
        stored_features: the locked image tower's features come from files (``siglightning embed``).
        memory_bytes: what a device has, to look for the largest slice that fits.

    Raises:
        ValueError: no parameter is trained, or a rule matches none.
    """
    shape = shape_of(task, precision, stored_features=stored_features)
    rows = [_on_devices(task, shape, length.global_batch_size, count, memory_bytes) for count in devices]
    return Plan(size_of(task.network), length, rows)


def size_of(network: TwoTower) -> ModelSize:
    """Count parameters."""
    embedding = getattr(network.text_tower, "token_embedding", None)
    return ModelSize(
        _count(network.image_tower, network.image_projection),
        _count(network.text_tower, network.text_projection),
        0 if embedding is None else _count(embedding),
        _count(network),
        sum(p.numel() for p in network.parameters() if p.requires_grad),
    )


def shape_of(
    task: ContrastiveTask, precision: Precision, *, stored_features: bool = False, optimizer_bytes: int | None = None
) -> Shape:
    """What a step of a task needs.

    Args:
        task: with its network on the meta device, unless ``optimizer_bytes`` are given.
        precision: of the run.
        stored_features: as for :func:`make_plan`.
        optimizer_bytes: of the optimizer's state; ``None``: it takes one step on the meta device to find out.
    """
    network, itemsize = task.network, precision.weights.itemsize
    if optimizer_bytes is None:
        optimizer_bytes = state_bytes(
            build_optimizer(task, task.optimizer_factory, task.rules, task.scalar_lr_mult, task.weight_decay_convention)
        )
    image, text = tower_footprints(network, precision)
    picture = 4 * network.image_tower.width if stored_features else 3 * network.image_size**2
    return Shape(
        parameter_bytes(network, itemsize),
        parameter_bytes(network, itemsize, trained=True),
        max((p.numel() for p in network.parameters() if p.requires_grad), default=0) * itemsize,
        optimizer_bytes,
        image,
        text,
        picture + 8 * network.context_length,
        network.embed_dim,
        precision,
    )


def _on_devices(task: ContrastiveTask, shape: Shape, batch: int, devices: int, memory: int | None) -> OnDevices:
    pairs, rest = divmod(batch, devices)
    if rest or not pairs:
        return OnDevices(devices, pairs, None, f"{batch:,} pairs cannot be shared out to {devices} devices")
    slices, side = task.network.micro_batch_size, task.chunk_size
    fitting = None if memory is None else largest_micro_batch(shape, pairs, devices, memory, side)
    try:
        if slices is not None:
            check_divides(slices, pairs)
    except ValueError as error:
        return OnDevices(devices, pairs, None, str(error), fitting)
    return OnDevices(devices, pairs, forecast(shape, pairs, devices, slices, side), "", fitting)


def _count(*modules: nn.Module) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())
