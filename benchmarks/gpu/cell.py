"""One batch size and width: every contestant in turns, and what was left out with the reason."""

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import cycle
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.clock import Clock, number_of_turns, repeats_for, take_turns
from benchmarks.gpu.contestants import LIMIT, Contestant, limit
from benchmarks.gpu.forecast import Limits, Measured, grown, too_much
from benchmarks.gpu.pairs import Inputs, Reference, copies_for, errors, make_inputs, reference, rounding
from benchmarks.gpu.place import gpu_state
from benchmarks.gpu.products import Tile, best_tile, tiles_for

PROBES = (2048, 8192)  # batches that are tried before a large one of which nothing is known
LONG_S = 2.0  # a run expected to take longer is run once, not twice, before the turns
History = dict[tuple[int, str], dict[int, Measured]]  # (width, contestant) -> batch -> what it took


class Work(NamedTuple):
    """What is measured: so many pairs of embeddings of so many dimensions in this dtype."""

    pairs: int
    dim: int
    dtype: torch.dtype

    def record(self) -> dict[str, Any]:
        """As results have it."""
        return {"pairs": self.pairs, "dim": self.dim, "dtype": str(self.dtype).removeprefix("torch.")}


class Options(NamedTuple):
    """How it is measured.

    Attributes:
        cell_s: seconds that the turns of one batch size may take, beyond the least number of turns.
        max_s: seconds that one run may take.
        whole_up_to: largest batch with an exact pass over all pairs, for the loss and the gradients of t' and b.
    """

    cell_s: float = 6.0
    max_s: float = 20.0
    whole_up_to: int = 65_536


@dataclass
class Row:
    """What was found of one contestant.

    Attributes:
        name: its name.
        seconds: one a turn; empty where it was left out.
        repeats: runs in each of them.
        first_s: seconds of the very first run, compilation included.
        extra_bytes: most memory beyond inputs and gradients; ``None`` where it cannot be told.
        errors: see :func:`benchmarks.gpu.pairs.errors`.
        left_out: why there is nothing.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    repeats: int = 1
    first_s: float | None = None
    extra_bytes: int | None = None
    errors: dict[str, float] = field(default_factory=dict)
    left_out: str | None = None


def measure_cell(
    clock: Clock, work: Work, contestants: Sequence[Contestant], history: History, options: Options
) -> dict[str, Any]:
    """Measure all of them at one size; what they take is added to ``history``."""
    probe(clock, work, contestants, history, options)
    _forget_compiled()
    inputs = _batches(clock, work)
    _tidy(clock)
    exact = reference(inputs[0], whole=work.pairs <= options.whole_up_to)
    tile = best_tile(clock, inputs, tiles_for(work.pairs, work.dtype.itemsize, clock.free_bytes()))
    rows, runs = [_limit_row(clock, work, inputs, tile, history)], {LIMIT: _run_limit(inputs, tile)}
    for contestant in contestants:
        row = _try(clock, work, contestant, inputs[0], exact, history, options)
        rows.append(row)
        if row.left_out is None:
            runs[row.name] = _run(contestant, inputs)
    expected = {name: history[work.dim, name][work.pairs].seconds for name in runs}
    before = gpu_state()
    turns = number_of_turns(expected, options.cell_s)
    found = take_turns(clock, runs, expected, turns)
    for row in rows:
        row.seconds, row.repeats = found.get(row.name, []), repeats_for(expected.get(row.name, 1.0))
        if row.name in runs and not row.seconds:
            row.left_out = "failed in its turn, though not before"
    return {
        **work.record(),
        **{"copies": len(inputs), "turns": turns, "limit_tile": list(tile), "state": [before, gpu_state()]},
        "rounding": rounding(exact, work.dtype),
        "rows": [asdict(row) for row in rows],
    }


def probe(clock: Clock, work: Work, contestants: Sequence[Contestant], history: History, options: Options) -> None:
    """Let those of whom nothing is known run at small sizes first, where a large one is asked for."""
    unknown = [c for c in contestants if not history.get((work.dim, c.name))]
    if work.pairs <= PROBES[-1] or not unknown:
        return
    for pairs in PROBES:
        small = Work(pairs, work.dim, work.dtype)
        inputs = make_inputs(*small, clock.device)
        exact = reference(inputs, whole=False)
        for contestant in unknown:
            _try(clock, small, contestant, inputs, exact, history, options)


def expected_seconds(work: Work, contestants: Sequence[Contestant], history: History, options: Options) -> float:
    """What the cell will take at least, by forecast; those that take longer than allowed do not count."""
    total = 0.0
    for name in (LIMIT, *(contestant.name for contestant in contestants)):
        known = {n: found.seconds for n, found in history.get((work.dim, name), {}).items() if n < work.pairs}
        seconds = grown(known, work.pairs) if known else 0.0
        total += 5 * seconds if seconds <= options.max_s else 0.0
    return total


def _batches(clock: Clock, work: Work) -> list[Inputs]:
    itemsize = work.dtype.itemsize
    copies = copies_for(clock.cache_bytes(), work.pairs, work.dim, itemsize)
    return [make_inputs(*work, clock.device, seed=seed) for seed in range(copies)]


def _try(
    clock: Clock,
    work: Work,
    contestant: Contestant,
    inputs: Inputs,
    exact: Reference,
    history: History,
    options: Options,
) -> Row:
    """Run once or twice outside of the turns: for compilation, memory, errors and an expectation of the time."""
    row, known = Row(contestant.name), history.setdefault((work.dim, contestant.name), {})
    gradient_bytes = 2 * work.pairs * work.dim * work.dtype.itemsize
    limits = Limits(options.max_s, clock.free_bytes())
    row.left_out = contestant.absent(clock.device) or too_much(known, work.pairs, gradient_bytes, limits)
    if row.left_out is not None:
        return row
    smaller = {n: found.seconds for n, found in known.items() if n < work.pairs}
    is_long = bool(smaller) and grown(smaller, work.pairs) > LONG_S
    try:
        for attempt in range(1 if is_long else 2):
            measured, row.errors = _measure(clock, contestant, inputs, exact)
            row.first_s = measured.seconds if attempt == 0 else row.first_s
        known[work.pairs], row.extra_bytes = measured, measured.extra_bytes
    except torch.OutOfMemoryError:
        row.left_out = "out of memory"
    except Exception as error:  # of whatever kind: other contestants are to be measured still
        row.left_out = f"failed: {type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    inputs.clear()
    _tidy(clock)
    return row


def _measure(
    clock: Clock, contestant: Contestant, inputs: Inputs, exact: Reference
) -> tuple[Measured, dict[str, float]]:
    inputs.clear()
    losses: list[Tensor] = []
    seconds, peak = clock.peak_bytes(lambda: losses.append(contestant.run(inputs)))
    extra = None if peak is None else max(0, peak - inputs.gradient_bytes())
    return Measured(seconds, extra), errors(inputs, losses[0], exact)


def _limit_row(clock: Clock, work: Work, inputs: Sequence[Inputs], tile: Tile, history: History) -> Row:
    seconds, peak = clock.peak_bytes(lambda: limit(inputs[0], tile))
    outputs = inputs[0].images.nbytes + inputs[0].texts.nbytes
    extra = None if peak is None else max(0, peak - outputs)
    history.setdefault((work.dim, LIMIT), {})[work.pairs] = Measured(seconds, extra)
    return Row(LIMIT, first_s=seconds, extra_bytes=extra)


def _run(contestant: Contestant, inputs: Sequence[Inputs]) -> Callable[[], None]:
    """A run over the next batch; the gradients are let go, so that the next run has all the memory."""
    batches: Iterator[Inputs] = cycle(inputs)

    def run() -> None:
        batch = next(batches)
        contestant.run(batch)
        batch.clear()

    return run


def _run_limit(inputs: Sequence[Inputs], tile: Tile) -> Callable[[], None]:
    batches: Iterator[Inputs] = cycle(inputs)
    return lambda: limit(next(batches), tile)


def _forget_compiled() -> None:
    """Each shape is compiled for itself; dynamo gives up after eight of one function."""
    torch._dynamo.reset()


def _tidy(clock: Clock) -> None:
    """Give back what a run left: a large one may fit only where the memory is in one piece."""
    gc.collect()
    if clock.is_gpu:
        torch.cuda.empty_cache()
