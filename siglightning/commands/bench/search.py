"""The largest batch whose step fits into a given memory, for each form, with the loss alone and with towers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from siglightning.commands.bench.measure import Workload, memory

FIRST_BATCH = 256


@dataclass(frozen=True)
class Largest:
    """The largest power of two that fits.

    Attributes:
        form: its name.
        with_towers: whether two small towers embed the batch.
        pairs: local batch; 0 where not even the smallest fits.
        extra_mib: what it needed.
        reason: why the next one is not the answer: ``too large``, or ``not tried`` (the machine, or the time).
    """

    form: str
    with_towers: bool
    pairs: int
    extra_mib: float
    reason: str


def largest_batches(
    names: Sequence[str], limit_mib: float, max_pairs: int, dim: int, threads: int
) -> Iterable[Largest]:
    """Search forms that run on one process, doubling the batch from 256 up to ``max_pairs``."""
    for with_towers in (False, True):
        for name in names:
            yield _largest(name, Workload(1, FIRST_BATCH, dim, threads, with_towers), limit_mib, max_pairs)


def _largest(name: str, work: Workload, limit_mib: float, max_pairs: int) -> Largest:
    fits, needed = 0, 0.0
    while work.pairs <= max_pairs:
        if 4 * needed > _available_mib():  # a matrix of logits is four times as large when the batch doubles
            break
        extra = memory(name, work).extra_mib
        if extra > limit_mib:
            return Largest(name, work.with_towers, fits, needed, "too large")
        fits, needed, work = work.pairs, extra, replace(work, pairs=2 * work.pairs)
    return Largest(name, work.with_towers, fits, needed, "not tried")


def as_markdown(found: Iterable[Largest], limit: str) -> str:
    """One line a form; ``at least`` where the next batch was not tried."""
    lines = [f"| form | with | largest batch in {limit} | extra MiB |", "| --- | --- | ---: | ---: |"]
    for row in found:
        least = "at least " if row.reason == "not tried" else ""
        towers = "towers" if row.with_towers else "loss alone"
        lines.append(f"| {row.form} | {towers} | {least}{row.pairs:,} | {row.extra_mib:,.0f} |")
    return "\n".join(lines)


def _available_mib() -> float:
    text = Path("/proc/meminfo").read_text()
    return int(text.partition("MemAvailable:")[2].split()[0]) / 1024
