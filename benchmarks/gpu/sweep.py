"""Settings of our own kernel, each measured in turns with all others: sides of a tile, and blocks, warps and stages."""

import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from benchmarks.gpu.cell import Work
from benchmarks.gpu.clock import Clock, number_of_turns, take_turns
from benchmarks.gpu.contestants import BACKENDS
from benchmarks.gpu.pairs import Inputs, errors, make_inputs, reference
from siglightning.losses import sigmoid_loss
from siglightning.runtime.files import write_text

SIDES = (1024, 2048, 4096, 8192, 16_384)
SECONDS = 20.0  # of the turns at one size


class Setting(NamedTuple):
    """One way to run our loss.

    Attributes:
        backend: of :func:`siglightning.losses.sigmoid_loss`.
        side: of a tile, in rows.
        kernel: the kernel's blocks, warps and stages by name; ``None`` leaves its own choice.
    """

    backend: str
    side: int
    kernel: dict[str, int] | None = None

    @property
    def name(self) -> str:
        """For the table."""
        kernel = ", ".join(f"{key} {value}" for key, value in (self.kernel or {}).items()) or "its own choice"
        return f"{self.backend}, side {self.side:,}, {kernel}"


def settings(pairs: int) -> list[Setting]:
    """What is tried at a batch size; where all sides are larger than the batch, the batch itself."""
    sides = [side for side in SIDES if side <= pairs] or [pairs]
    return [
        Setting(backend, side, kernel)
        for backend in BACKENDS
        for side in sides
        for kernel in (kernels() if backend == "triton" else [None])
    ]


def kernels() -> list[dict[str, int] | None]:
    """Settings of the kernel to be tried, its own choice among them."""
    return [None]


def with_kernel(kernel: dict[str, int] | None) -> AbstractContextManager[None]:
    """Let the kernel run with these settings."""
    if kernel is not None:
        raise ValueError(f"Expected None until the kernel can be told its settings, got {kernel}.")
    return nullcontext()


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
    loss: Callable[..., Any] = sigmoid_loss
    with with_kernel(setting.kernel):
        loss(*inputs.tensors, backend=setting.backend, chunk_size=setting.side).backward()
