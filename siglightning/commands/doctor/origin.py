"""Where the weights of step 0 come from, and what pictures and captions their maker fed them with."""

import json
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from lightning.pytorch import LightningModule

from siglightning.batch import Resizing
from siglightning.models import TwoTower
from siglightning.models.foreign import refusing
from siglightning.models.interop import open_checkpoint
from siglightning.models.interop.checkpoint import Checkpoint, Kind
from siglightning.models.interop.loading import require_tokenizer
from siglightning.models.token_record import TokenRecord
from siglightning.models.towers import ImageTower, TowerConfig, build_image_tower
from siglightning.tasks.initial_weights import InitialWeights

PARTS = {"image_tower": "image tower", "text_tower": "text side"}  # what they are called when weights are taken


@dataclass(frozen=True)
class Preparation:
    """How a picture reaches an image tower.

    Attributes:
        image_size: side of the square, in pixels.
        mean: per channel, of pixels in ``[0, 1]``.
        std: likewise the standard deviation.
        resizing: how a picture becomes the square.
    """

    image_size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    resizing: Resizing

    @classmethod
    def of(cls, tower: ImageTower) -> "Preparation":
        """That of a tower."""
        return cls(tower.image_size, tuple(tower.mean), tuple(tower.std), tower.resizing)


@dataclass(frozen=True)
class Described:
    """What a checkpoint tells of its inputs.

    Attributes:
        text: how its captions became ids; ``None`` where that is not known.
        image: how its pictures were prepared; ``None`` likewise.
        unknown: why something of it is not known; empty where all is.
    """

    text: TokenRecord | None = None
    image: Preparation | None = None
    unknown: str = ""


@dataclass(frozen=True)
class Origin:
    """Where the weights of step 0 come from.

    Attributes:
        checkpoint: the file, folder or name; ``None`` where the model begins as it is built.
        kind: ``run`` for one of ours, else the library that it is of.
        step: optimizer steps that the weights of a run have seen; ``None`` where nobody counted.
        parts: of the model that come from it, such as ``image tower``.
        described: what it tells of its inputs.
        pretrained: towers that bring weights of their own, ``image_tower`` and ``text_tower``.
    """

    checkpoint: str | None = None
    kind: str = "run"
    step: int | None = None
    parts: frozenset[str] = frozenset()
    described: Described = Described()
    pretrained: frozenset[str] = frozenset()

    @property
    def knows_pairs(self) -> bool:
        """Whether both towers were trained together, so that a picture must lie nearest to its caption."""
        return set(PARTS.values()) <= self.parts

    def brings(self, tower: str) -> bool:
        """Whether the weights of ``image_tower`` or ``text_tower`` come from the checkpoint."""
        return PARTS[tower] in self.parts

    def trained(self, tower: str) -> bool:
        """Whether ``image_tower`` or ``text_tower`` begins with trained weights, from wherever."""
        return tower in self.pretrained or self.brings(tower)

    def told(self) -> str:
        """In a few words, for the head of a report."""
        if self.checkpoint is None:
            return "weights as built"
        return f"weights of {self.checkpoint}, {f'of {self.kind}' if self.step is None else f'step {self.step:,}'}"


def describe(checkpoint: Checkpoint) -> Described:
    """What a checkpoint tells of its inputs, in whatever library it was made.

    Its network is built once more as its own files describe it, without numbers where the library can, and asked.

    Raises:
        ValueError: its files describe none.
    """
    with refusing(checkpoint.source):
        return _described(checkpoint)


def _described(checkpoint: Checkpoint) -> Described:
    arguments = checkpoint.arguments
    towers = [TowerConfig.of(arguments[name]) for name in PARTS]
    moves = any(tower.scheme == "open_clip" for tower in towers)  # what it built, which cannot be without numbers
    with torch.device("cpu" if moves else "meta"):
        image = Preparation.of(build_image_tower(towers[0], arguments.get("image_size")))
        try:
            require_tokenizer(checkpoint, {})
            network = TwoTower(**arguments)
        except (ValueError, RuntimeError) as error:  # mostly a tokenizer that cannot be had from here
            return Described(None, image, sentence(error))
    return Described(TokenRecord.of(network.tokenizer), image)


def of_begun(task: LightningModule, source: str | Path, begun: InitialWeights, pretrained: frozenset[str]) -> Origin:
    """The origin of weights that were put into a task.

    Args:
        task: that they were put into.
        source: as the user named it.
        begun: what was taken.
        pretrained: towers that bring weights of their own.
    """
    tower = str(getattr(getattr(getattr(task, "network", None), "image_tower", None), "name", ""))
    architecture = tower.removeprefix("open_clip:") if tower.startswith("open_clip:") else None
    try:
        with torch.random.fork_rng(devices=[]):  # libraries draw weights before they load some
            described = describe(open_checkpoint(source, architecture=architecture))
    except ValueError as error:  # weights alone, of which only the model says what they are for
        described = Described(unknown=sentence(error))
    if begun.kind == "run":
        described = with_record(described, Path(begun.checkpoint))
    taken = frozenset(begun.taken)
    return Origin(str(begun.checkpoint), begun.kind, begun.global_step, taken, described, pretrained)


def of_network(source: str | Path, kind: Kind | None, architecture: str | None) -> Origin:
    """The origin of a network that brings all its weights from a checkpoint, see :func:`load_two_tower`."""
    with torch.random.fork_rng(devices=[]):
        checkpoint = open_checkpoint(source, kind, architecture)
        described = describe(checkpoint)
    if checkpoint.kind == "run" and checkpoint.path is not None:
        described = with_record(described, checkpoint.path)
    return Origin(checkpoint.source, checkpoint.kind, None, frozenset(PARTS.values()), described)


def with_record(described: Described, checkpoint: Path) -> Described:
    """With the ids that a run saw in training, from ``model.json``, rather than those that its tokenizer gives now."""
    try:
        record = json.loads((checkpoint.parent.parent / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return described
    text = TokenRecord.read(record.get("text") or {}) if isinstance(record, dict) else None
    return replace(described, text=text or described.text)


def sentence(error: Exception) -> str:
    """An error in one line, to stand within another sentence."""
    return " ".join(str(error).split()).rstrip(".")
