"""One batch size: every training in turns, its images a second, its memory, and whether it fits at all."""

import gc
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, Protocol

import torch

from benchmarks.gpu.clock import Clock, rotated
from benchmarks.gpu.place import gpu_state
from benchmarks.gpu.trace import write_profile
from benchmarks.gpu.train_open_clip import OpenClipTraining, input_dtype
from benchmarks.gpu.train_ours import OurTraining, flops_per_image
from benchmarks.gpu.train_setup import (
    Batches,
    Shape,
    Window,
    Work,
    make_batches,
    open_clip_model,
    shape_of,
)

OURS, OWN_TOWERS = "siglightning", "siglightning, its own towers"
THEIRS = {"open_clip amp_bf16": "amp_bf16", "open_clip pure_bf16": "pure_bf16", "open_clip fp32": "fp32"}
BY_DEFAULT = (OURS, "open_clip amp_bf16", "open_clip pure_bf16")
NAMES = (OURS, OWN_TOWERS, *THEIRS)
FIRST = 3  # steps of the turn in which all is compiled


class Training(Protocol):
    """A training that takes turns."""

    def turn(self, batches: Batches, window: Window) -> None:
        """Train as many steps as the window asks for."""


@dataclass
class Row:
    """What was found of one training.

    Attributes:
        name: its name.
        seconds: of the counted steps, one a turn; empty where it was left out.
        first_s: seconds of its first turn of three steps, compilation included.
        peak_bytes: most memory that it allocated, weights and states included; ``None`` where it cannot be told.
        left_out: why there is nothing.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    first_s: float | None = None
    peak_bytes: int | None = None
    left_out: str | None = None


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what Lightning tells at each `fit` of what it found and what could be better; only here and now."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", module="lightning")
            yield
    finally:
        logger.setLevel(level)


@_quietly()
def measure_cell(
    clock: Clock, work: Work, names: Sequence[str], turns: int, warm_up: int, steps: int
) -> dict[str, Any]:
    """Let all of them take turns at one batch size."""
    rows, before = {name: Row(name) for name in names}, gpu_state()
    model = open_clip_model(work.model)
    shape = shape_of(model)
    with TemporaryDirectory() as folder:
        trainings, batches = _begun(clock, work, rows, Path(folder), model)
        flops = flops_per_image(work, shape, batches)
        for turn in range(turns):
            for name in rotated(list(trainings), turn):
                _one_turn(clock, rows[name], trainings, batches, Window(clock, warm_up, steps))
    return {
        **work.record(),
        **{"side": shape.side, "context": shape.context, "steps": steps, "warm_up": warm_up},
        "flops_per_image": flops,
        "state": [before, gpu_state()],
        "rows": [asdict(row) for row in rows.values()],
    }


@_quietly()
def profile_turns(clock: Clock, work: Work, names: Sequence[str], folder: Path) -> list[Path]:
    """A table and a trace of a turn of three steps of each."""
    written = []
    with TemporaryDirectory() as runs:
        trainings, batches = _begun(clock, work, {name: Row(name) for name in names}, Path(runs), None)
        for name, training in trainings.items():
            stem = f"profile_train_{name.replace(' ', '_').replace(',', '')}_{work.batch}"
            run = partial(training.turn, batches, Window(clock, 1, FIRST - 1))
            written += write_profile(clock, run, folder, stem, runs=1)
    return written


def _begun(
    clock: Clock, work: Work, rows: Mapping[str, Row], folder: Path, model: Any
) -> tuple[dict[str, Training], Batches]:
    """Build all of them and let them compile; those that fail are left out, with the reason in their row."""
    torch._dynamo.reset()  # a second size would be compiled for all sizes, and those kernels are slower
    model = model or open_clip_model(work.model)
    shape = shape_of(model)
    dtypes = {input_dtype(THEIRS[name]) for name in rows if name in THEIRS}
    batches, trainings = make_batches(shape, work.batch, dtypes), {}
    for name, row in rows.items():
        build = partial(_build, name, work, shape, folder / name, model)
        training = _first_turn(clock, row, build, batches)
        if training is not None:
            trainings[name] = training
    return trainings, batches


def _build(name: str, work: Work, shape: Shape, folder: Path, model: Any) -> Training:
    """All begin with the same weights, where their towers are the same."""
    folder.mkdir(parents=True)
    if name == OURS:
        return OurTraining(work, shape, folder, model)
    if name == OWN_TOWERS:
        return OurTraining(work, shape, folder)
    own = open_clip_model(work.model, THEIRS[name])
    own.load_state_dict(model.state_dict())
    return OpenClipTraining(work, own, THEIRS[name])


def _first_turn(clock: Clock, row: Row, build: Callable[[], Training], batches: Batches) -> Training | None:
    """Build and compile; ``None`` where that fails, with the reason in the row."""
    begun = perf_counter()
    training = _tried(row, lambda: _turned(build(), batches, Window(clock, 1, FIRST - 1)))
    row.first_s = perf_counter() - begun
    _tidy(clock)
    return training


def _one_turn(clock: Clock, row: Row, trainings: dict[str, Training], batches: Batches, window: Window) -> None:
    before = _watch_memory(clock)
    if _tried(row, lambda: _turned(trainings[row.name], batches, window)) is None:
        del trainings[row.name]
        row.seconds = []
    elif window.seconds is not None:
        row.seconds.append(window.seconds)
        row.peak_bytes = None if before is None else torch.cuda.max_memory_allocated(clock.device) - before
    _tidy(clock)


def _turned(training: Training, batches: Batches, window: Window) -> Training:
    training.turn(batches, window)
    return training


def _tried(row: Row, run: Callable[[], Training]) -> Training | None:
    try:
        return run()
    except torch.OutOfMemoryError:
        row.left_out = "out of memory"
    except Exception as error:  # of whatever kind: the others are to be measured still
        row.left_out = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    return None


def _watch_memory(clock: Clock) -> int | None:
    """What is allocated before a turn; the peak is counted from now on."""
    if not clock.is_gpu:
        return None
    torch.cuda.reset_peak_memory_stats(clock.device)
    return torch.cuda.memory_allocated(clock.device)


def _tidy(clock: Clock) -> None:
    gc.collect()
    if clock.is_gpu:
        torch.cuda.empty_cache()
