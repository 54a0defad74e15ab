"""What both trainings share: one model, the same batches in pinned memory, one optimizer, one clock."""

import logging
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import open_clip
import torch
from tokenizers import Tokenizer as FastTokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from torch.optim import Optimizer

from benchmarks.gpu.clock import Clock

DISTINCT = 4  # batches that are in memory, used in turn
OPTIMIZER = {"lr": 5e-4, "betas": (0.9, 0.95), "eps": 1e-6, "weight_decay": 0.2}


class Work(NamedTuple):
    """What is trained.

    Attributes:
        model: a name of open_clip's, or the path of a config in its format.
        batch: pairs in a step.
        precision: of ours, as Lightning calls it.
        compiled: whether torch.compile is used, by all.
        device: on which.
    """

    model: str
    batch: int
    precision: str
    compiled: bool
    device: torch.device

    def record(self) -> dict[str, Any]:
        """As results have it."""
        model = Path(self.model).stem if self.model.endswith(".json") else self.model
        return {"model": model, "batch": self.batch, "precision": self.precision, "compiled": self.compiled}


class Shape(NamedTuple):
    """What a model reads: side of a picture, tokens, ids, and what its pictures are normalised with."""

    side: int
    context: int
    vocabulary: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


@dataclass
class Batches:
    """Synthetic pairs in the host's memory, pinned where there is a GPU.

    Attributes:
        images: uint8 ``[B, 3, S, S]``, as our data modules give them.
        texts: int64 ``[B, L]``.
        normalised: the same pictures as open_clip's preprocessing gives them, in the dtype that it hands on.
    """

    images: list[Tensor]
    texts: list[Tensor]
    normalised: dict[torch.dtype, list[Tensor]]


class Window:
    """The clock of a turn: some steps to warm up, then those that count.

    A step is counted from its predecessor's end to its own, so loading, copying and all that a loop does between two
    steps count.
    """

    def __init__(self, clock: Clock, warm_up: int, steps: int) -> None:
        self.clock, self.warm_up, self.steps = clock, warm_up, steps
        self.seconds: float | None = None
        self._begun = 0.0

    @property
    def total(self) -> int:
        """Steps of a turn."""
        return self.warm_up + self.steps

    def finished(self, steps: int) -> None:
        """Tell that so many steps have been asked of the device."""
        if steps == self.warm_up:
            self.clock.wait()
            self._begun = perf_counter()
        elif steps == self.total:
            self.clock.wait()
            self.seconds = perf_counter() - self._begun


def open_clip_model(name: str, precision: str = "fp32") -> Any:
    """Random weights in the model that its training would build with `--siglip`, on the CPU.

    Args:
        name: of the model, or the path of a config.
        precision: as its own option of that name says.
    """
    if name.endswith(".json"):
        open_clip.add_model_config(Path(name))
        name = Path(name).stem
    scalars = {"init_logit_scale": torch.tensor(10.0).log().item(), "init_logit_bias": -10.0}
    logging.disable(logging.WARNING)  # that weights are random
    try:
        return open_clip.create_model(name, precision=precision, output_dict=True, load_weights=False, **scalars)
    finally:
        logging.disable(logging.NOTSET)


def shape_of(model: Any) -> Shape:
    """What an open_clip model reads."""
    side, preprocess = model.visual.image_size, model.visual.preprocess_cfg
    side = side[0] if isinstance(side, tuple) else side
    vocabulary = int(model.text.vocab_size)
    return Shape(side, int(model.context_length), vocabulary, tuple(preprocess["mean"]), tuple(preprocess["std"]))


def make_batches(shape: Shape, batch: int, dtypes: set[torch.dtype]) -> Batches:
    """Random pictures and ids, the same for all who take part."""
    generator = torch.Generator().manual_seed(0)
    size, ids = (batch, 3, shape.side, shape.side), (batch, shape.context)
    images = [torch.randint(256, size, dtype=torch.uint8, generator=generator) for _ in range(DISTINCT)]
    texts = [torch.randint(1, shape.vocabulary, ids, generator=generator) for _ in range(DISTINCT)]
    mean, std = (torch.tensor(value)[:, None, None] for value in (shape.mean, shape.std))
    normalised = {dtype: [_pinned(((i / 255 - mean) / std).to(dtype)) for i in images] for dtype in dtypes}
    return Batches([_pinned(image) for image in images], [_pinned(text) for text in texts], normalised)


def tokenizer_file(folder: Path, vocabulary: int) -> Path:
    """A tokenizer with so many ids: ours want one, and the models' own lie on a hub."""
    path = folder / f"tokenizer_{vocabulary}.json"
    words = {"[UNK]": 0} | {f"w{number}": number for number in range(1, vocabulary)}
    FastTokenizer(WordLevel(words, unk_token="[UNK]")).save(str(path))
    return path


def adamw(params: Any) -> Optimizer:
    """AdamW as open_clip's training builds it, but fused."""
    return torch.optim.AdamW(params, fused=True, **OPTIMIZER)


def _pinned(tensor: Tensor) -> Tensor:
    return tensor.pin_memory() if torch.cuda.is_available() else tensor
