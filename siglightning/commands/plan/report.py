"""A plan as text for the terminal, and as plain values for a file."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any

from siglightning.commands.plan import OnDevices, Plan
from siglightning.commands.plan.memory import Forecast

GIB = 2**30
_PIECES = [field.name for field in fields(Forecast)]


def as_text(plan: Plan) -> str:
    """Sizes, length and memory, a page."""
    return "\n".join(_lines(plan))


def as_values(plan: Plan) -> dict[str, Any]:
    """The same as plain values; memory in bytes."""
    return {
        "parameters": asdict(plan.model),
        "length": asdict(plan.length) | {"examples_seen": plan.length.examples_seen},
        "devices": [
            asdict(row) | {"peak_bytes": None if row.bytes is None else row.bytes.peak} for row in plan.on_devices
        ],
    }


def _lines(plan: Plan) -> Iterator[str]:
    size, length = plan.model, plan.length
    yield "parameters"
    yield f"  image tower {size.image:>17,}"
    yield f"  text tower  {size.text:>17,}   of which {size.token_embedding:,} are the token embedding"
    yield f"  in all      {size.total:>17,}   of which {size.trained:,} are trained"
    yield "length"
    yield f"  {length.examples_seen:,} examples seen = {length.global_batch_size:,} x {length.steps:,} optimizer steps"
    yield f"  {length.warmup_steps:,} steps of them with a rising learning rate"
    yield "memory on each device, forecast in GiB"
    yield from _table(plan.on_devices)
    yield "  peak = weights + gradients + optimizer + the larger of (batch + activations + loss) and update."
    yield "  Not in it: what the device's libraries and its allocator hold for themselves."


def _table(rows: Sequence[OnDevices]) -> Iterator[str]:
    asked = any(row.micro_batch_size is not None for row in rows)
    head = ["devices", "pairs", *_PIECES, "peak"] + (["slices that fit"] if asked else [])
    table = [head]
    for row in rows:
        values = [row.bytes.peak] if row.bytes else []
        pieces = [getattr(row.bytes, name) for name in _PIECES] if row.bytes else []
        fit = [] if not asked else [_slices(row)]
        cells = [f"{value / GIB:.2f}" for value in (*pieces, *values)] or ["-"] * (len(_PIECES) + 1)
        table.append([f"{row.devices:,}", f"{row.pairs:,}", *cells, *fit])
    widths = [max(len(line[column]) for line in table) for column in range(len(head))]
    for line in table:
        yield "  " + "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
    yield from (f"  {row.devices} devices: {row.reason}" for row in rows if row.reason)


def _slices(row: OnDevices) -> str:
    if row.micro_batch_size is None:
        return "none"
    return "whole" if row.micro_batch_size == row.pairs else f"{row.micro_batch_size:,}"
