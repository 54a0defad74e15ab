"""Seconds and bytes of what runs on a device."""

import sys
import time
from collections.abc import Callable, Mapping, Sequence
from statistics import median

import torch

Run = Callable[[], object]
SPAN_S = 0.02  # what one measurement takes at least: shorter runs are repeated within it
MIN_TURNS, MAX_TURNS = 3, 30
LARGEST_CACHE = 128 * 2**20


class Clock:
    """Times runs on one device: by events of the GPU's stream, or by the wall clock on a CPU."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.is_gpu = device, device.type == "cuda"

    def wait(self) -> None:
        """Until the device has done all that was asked of it."""
        if self.is_gpu:
            torch.cuda.synchronize(self.device)

    def seconds(self, run: Run, repeats: int = 1) -> float:
        """Seconds of one run, as the mean of ``repeats`` that follow each other without a pause."""
        self.wait()
        if not self.is_gpu:
            begun = time.perf_counter()
            _repeat(run, repeats)
            return (time.perf_counter() - begun) / repeats
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        _repeat(run, repeats)
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / repeats

    def free_bytes(self) -> int | None:
        """What may still be allocated, blocks kept for reuse included; ``None`` on a CPU."""
        if not self.is_gpu:
            return None
        free, _ = torch.cuda.mem_get_info(self.device)
        return free + torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)

    def peak_bytes(self, run: Run) -> tuple[float, int | None]:
        """Seconds of one run, and the most that was allocated in it beyond what was before (``None`` on a CPU)."""
        if not self.is_gpu:
            return self.seconds(run), None
        self.wait()
        before = torch.cuda.memory_allocated(self.device)
        torch.cuda.reset_peak_memory_stats(self.device)
        seconds = self.seconds(run)
        return seconds, torch.cuda.max_memory_allocated(self.device) - before

    def cache_bytes(self) -> int:
        """The GPU's last cache, taken to be as large as they come where torch does not know it; 0 on a CPU."""
        if not self.is_gpu:
            return 0
        return int(getattr(torch.cuda.get_device_properties(self.device), "L2_cache_size", LARGEST_CACHE))


def repeats_for(seconds: float) -> int:
    """How often a run is repeated within one measurement."""
    return max(1, min(100, round(SPAN_S / max(seconds, 1e-9))))


def number_of_turns(seconds: Mapping[str, float], budget_s: float) -> int:
    """Turns for which the budget lasts, given what one run of each takes; at least 3, at most 30."""
    one = sum(value * repeats_for(value) for value in seconds.values())
    return max(MIN_TURNS, min(MAX_TURNS, int(budget_s / max(one, 1e-9))))


def take_turns(
    clock: Clock, runs: Mapping[str, Run], expected: Mapping[str, float], turns: int
) -> dict[str, list[float]]:
    """Seconds of each, turn by turn; all run once in each turn, and each is first as often as the others.

    One that fails has no seconds at all, and the others go on without it.
    """
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    able = list(runs)
    for turn in range(turns):
        for name in rotated(able, turn):
            try:
                seconds[name].append(clock.seconds(runs[name], repeats_for(expected[name])))
            except Exception as error:  # most likely memory that others have left in pieces
                print(f"{name} failed in turn {turn + 1}: {type(error).__name__}: {error}", file=sys.stderr)
                seconds[name] = []
                able.remove(name)
    return seconds


def rotated(names: Sequence[str], turn: int) -> list[str]:
    """The same names in the order of this turn: forwards and backwards by turns, each time beginning with another."""
    start = (turn // 2) % len(names) if names else 0
    order = [*names[start:], *names[:start]]
    return order[::-1] if turn % 2 else order


def ratio(seconds: Sequence[float], others: Sequence[float]) -> float:
    """The median over turns of one's seconds over another's in the same turn."""
    return median(own / other for own, other in zip(seconds, others, strict=True))


def _repeat(run: Run, repeats: int) -> None:
    for _ in range(repeats):
        run()
