"""A profile of one contestant: torch.profiler's table, and a trace small enough to be kept."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.clock import Clock

MAX_BYTES = 12 * 2**20  # of a trace, compressed
ROWS = 30
RUNS = 3
KERNELS = ("kernel", "gpu_memcpy", "gpu_memset")  # what a trace is kept for; other events go first when it is too long


def write_profile(clock: Clock, run: Callable[[], object], folder: Path, name: str, runs: int = RUNS) -> list[Path]:
    """Profile some runs after one to warm up; writes ``NAME.txt`` and ``NAME.json.gz`` (for Perfetto or Chrome)."""
    run()
    clock.wait()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if clock.is_gpu else [])]
    with profile(activities=activities, record_shapes=True, acc_events=True) as profiler:
        for _ in range(runs):
            with torch.profiler.record_function("one forward and backward pass"):
                run()
        clock.wait()
    table, trace, whole = folder / f"{name}.txt", folder / f"{name}.json.gz", folder / f"{name}.json"
    key = "self_cuda_time_total" if clock.is_gpu else "self_cpu_time_total"
    table.write_text(profiler.key_averages(group_by_input_shape=True).table(sort_by=key, row_limit=ROWS) + "\n")
    profiler.export_chrome_trace(str(whole))
    trace.write_bytes(trimmed(json.loads(whole.read_text()), MAX_BYTES))
    whole.unlink()
    return [table, trace]


def trimmed(trace: dict[str, Any], max_bytes: int) -> bytes:
    """The trace, compressed; events of the CPU are left out from the last on, then those of the GPU, until it fits.

    Raises:
        ValueError: it does not fit without any event.
    """
    events = sorted(trace["traceEvents"], key=lambda event: (_rank(event), float(event.get("ts", 0))))
    keep = len(events)
    while True:
        packed = gzip.compress(json.dumps(trace | {"traceEvents": events[:keep]}).encode(), mtime=0)
        if len(packed) <= max_bytes:
            return packed
        if keep == 0:
            raise ValueError(f"Expected a trace of at most {max_bytes} bytes, got {len(packed)} without any event.")
        keep = min(keep - 1, int(0.9 * keep * max_bytes / len(packed)))


def _rank(event: dict[str, Any]) -> int:
    """Names of processes and threads first, then kernels, then all else."""
    if event.get("ph") == "M":
        return 0
    return 1 if event.get("cat") in KERNELS else 2
