"""Settings of our own kernel, each measured in turns with all others: sides of a tile, and blocks, warps and stages."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.gpu.cell import Work
from benchmarks.gpu.clock import Clock, number_of_turns, take_turns
from benchmarks.gpu.pairs import Inputs, errors, make_inputs, reference
from siglightning.losses import sigmoid_loss
from siglightning.runtime.files import write_text

SIDES = (2048, 4096, 8192, 11_264, 16_384, 22_528)
BLOCKS = ((128, 256), (128, 128), (256, 128), (64, 256))  # rows and columns
# Two programs on a multiprocessor at once, each working while the other waits for its matrix products.
PAIRED = {"rows": 128, "columns": 128, "depth": 64, "warps": 8, "stages": 3, "registers": 128}
DEPTHS, WARPS, STAGES, GROUPS = (64, 128), (4, 8), (2, 3, 4), (4, 8, 16)
SECONDS = 30.0  # of the turns at one size


class Setting(NamedTuple):
    """One way to run our kernel; ``None`` leaves a choice to it.

    Attributes:
        side: of a tile, in rows.
        kernel: what :class:`siglightning.losses.triton_tiles.Blocks` takes.
    """

    side: int | None
    kernel: dict[str, int] | None = None

    @property
    def name(self) -> str:
        """For the table."""
        side = "its own side" if self.side is None else f"side {self.side:,}"
        kernel = ", ".join(f"{key} {value}" for key, value in (self.kernel or {}).items()) or "its own blocks"
        return f"{side}; {kernel}"


def settings(pairs: int) -> list[Setting]:
    """What is tried at a batch size: sides with the kernel's own blocks, and blocks with its own side."""
    sides = [Setting(side) for side in SIDES if side <= pairs]
    return [Setting(None), *sides, *(Setting(None, kernel) for kernel in kernels())]


def kernels() -> list[dict[str, int]]:
    """Blocks to be tried; the order of blocks (``group``) for the first of them alone."""
    listed = [
        {"rows": rows, "columns": columns, "depth": depth, "warps": warps, "stages": stages}
        for rows, columns in BLOCKS
        for depth in DEPTHS
        for warps in WARPS
        for stages in STAGES
    ]
    rows, columns = BLOCKS[0]
    return [
        *listed,
        PAIRED,
        *({"rows": rows, "columns": columns, "depth": DEPTHS[0], "group": group} for group in GROUPS),
    ]


@contextmanager
def with_kernel(kernel: dict[str, int] | None) -> Iterator[None]:
    """Let the kernel cut its tiles in these blocks."""
    from siglightning.losses import triton_sigmoid
    from siglightning.losses.triton_tiles import Blocks

    own = triton_sigmoid.default_blocks
    if kernel is not None:
        triton_sigmoid.default_blocks = lambda embeds, with_ids: Blocks(**kernel)
    try:
        yield
    finally:
        triton_sigmoid.default_blocks = own


def sweep(clock: Clock, works: Sequence[Work], path: Path, description: dict[str, Any]) -> None:
    """Measure every setting at every size; writes the file and prints the fastest first."""
    cells = []
    for work in works:
        cell = {"pairs": work.pairs, "dim": work.dim, "rows": _measured(clock, work)}
        cells.append(cell)
        print(f"{work.pairs:,} x {work.dim}")
        for row in cell["rows"]:
            print(
                f"  {median(row['seconds']) * 1e3:,.3f} ms: {row['name']}"
                if row["seconds"]
                else f"  {row['failed']}: {row['name']}"
            )
        write_text(path, json.dumps({"run": description, "cells": cells}, indent=1) + "\n")


def _measured(clock: Clock, work: Work) -> list[dict[str, Any]]:
    inputs = make_inputs(*work, clock.device)
    exact = reference(inputs, whole=False)
    rows, runs, expected = [], {}, {}
    for setting in settings(work.pairs):
        row: dict[str, Any] = {"name": setting.name, **setting._asdict(), "seconds": []}
        rows.append(row)
        try:
            run = partial(_run, setting, inputs)
            run()
            row["errors"] = errors(inputs, None, exact)
            expected[setting.name], runs[setting.name] = clock.seconds(run), run
        except Exception as error:  # shared memory or registers may not suffice for a setting
            row["failed"] = f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"
    found = take_turns(clock, runs, expected, number_of_turns(expected, SECONDS))
    for row in rows:
        row["seconds"] = found.get(row["name"], [])
    return sorted(rows, key=lambda row: median(row["seconds"]) if row["seconds"] else float("inf"))


def _run(setting: Setting, inputs: Inputs) -> None:
    inputs.clear()
    with with_kernel(setting.kernel):
        sigmoid_loss(*inputs.tensors, backend="triton", chunk_size=setting.side).backward()
