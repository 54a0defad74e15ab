"""What a two-tower checkpoint of any library is to us: arguments of a TwoTower and weights by its names."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from siglightning.batch import Resizing

Kind = Literal["transformers", "open_clip", "big_vision", "safetensors", "run"]


@dataclass(frozen=True)
class Preparation:
    """How pictures are prepared, where the name of the image tower alone does not tell.

    Attributes:
        mean: per channel, of pixels in ``[0, 1]``.
        std: per channel, of pixels in ``[0, 1]``.
        resizing: how pictures become squares.
    """

    mean: tuple[float, ...]
    std: tuple[float, ...]
    resizing: Resizing


@dataclass(frozen=True)
class Origin:
    """The run of ours that made a checkpoint.

    Attributes:
        directory: of the run, or the folder of a checkpoint that lies by itself.
        config: content of its ``config.yaml``.
        global_step: optimizer steps that the weights have seen.
    """

    directory: Path
    config: Mapping[str, Any]
    global_step: int


@dataclass(frozen=True)
class Checkpoint:
    """A two-tower model from elsewhere.

    Attributes:
        source: as the user named it.
        kind: where it comes from.
        arguments: of :class:`~siglightning.models.two_tower.TwoTower`, so that it is built alike without weights.
        weights: by TwoTower's names, on the CPU; ``log_scale`` and ``bias`` have shape ``(1,)``, and a model that was
            trained with a softmax has no ``bias``.
        path: the file or folder, or ``None`` for a model by name.
        files: that the weights were read from, where that is known.
        preparation: of pictures; ``None`` where the image tower that the arguments build knows it.
        origin: the run that made it, of kind ``run``.
    """

    source: str
    kind: Kind
    arguments: dict[str, Any]
    weights: dict[str, Tensor] = field(repr=False)
    path: Path | None = None
    files: tuple[Path, ...] = ()
    preparation: Preparation | None = None
    origin: Origin | None = None


def with_scalars(weights: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> Iterator[tuple[str, Tensor]]:
    """Weights under TwoTower's names.

    Args:
        weights: a state dictionary in which transformers' and open_clip's ``logit_scale`` and ``logit_bias`` are t'
            and b.
        prefixes: what names begin with, and what TwoTower says instead; the first fitting one is taken. A name that
            fits none is kept, for the comparison with the model to tell it.
    """
    for name, tensor in weights.items():
        match name:
            case "logit_scale":
                yield "log_scale", tensor.reshape(1).float()
            case "logit_bias":
                yield "bias", tensor.reshape(1).float()
            case _:
                fitting = ((old, new) for old, new in prefixes.items() if name.startswith(old))
                old, new = next(fitting, ("", ""))
                yield new + name.removeprefix(old), tensor
