"""What a run would take, from what smaller ones took: nothing is started that would not fit or not end.

Both are polynomials of the batch without a constant term: ``a n + b n²``. From one smaller batch the whole is taken to
grow with n², which is too much rather than too little; from two a and b follow, each at least 0.
"""

from collections.abc import Mapping
from typing import NamedTuple

GIB = 2**30
HEADROOM = 0.9  # of the free memory, for the allocator's own losses


class Measured(NamedTuple):
    """Of one run: seconds, and bytes beyond inputs and gradients (``None`` where they cannot be told)."""

    seconds: float
    extra_bytes: int | None


class Limits(NamedTuple):
    """What a run may take: seconds, and bytes (``None``: not limited)."""

    seconds: float
    free_bytes: int | None


def grown(known: Mapping[int, float], pairs: int) -> float:
    """The value expected at ``pairs``, from values at smaller batches.

    Raises:
        ValueError: nothing is known of a smaller batch.
    """
    smaller = sorted(n for n in known if n < pairs)[-2:]
    if not smaller:
        raise ValueError(
            f"Expected a measurement below {pairs} pairs, got {sorted(known)}. Measure a smaller batch first."
        )
    last = smaller[-1]
    if len(smaller) == 1:
        return known[last] * (pairs / last) ** 2
    first = smaller[0]
    square = (known[last] / last - known[first] / first) / (last - first)
    square = max(0.0, min(square, known[last] / last**2))
    linear = known[last] / last - square * last
    return linear * pairs + square * pairs**2


def too_much(known: Mapping[int, Measured], pairs: int, gradient_bytes: int, limits: Limits) -> str | None:
    """Why a run of so many pairs is left out; ``None`` where it may start.

    Args:
        known: what smaller batches took; with none of them it may start.
        pairs: of the run.
        gradient_bytes: that it also allocates.
        limits: what it may take.
    """
    smaller = [n for n in known if n < pairs]
    if not smaller:
        return None
    source = f"forecast from {max(smaller):,} pairs"
    extra = {n: float(found.extra_bytes) for n, found in known.items() if found.extra_bytes is not None}
    if limits.free_bytes is not None and any(n < pairs for n in extra):
        needed = grown(extra, pairs) + gradient_bytes
        if needed > HEADROOM * limits.free_bytes:
            free = limits.free_bytes / GIB
            return f"not run: needs {needed / GIB:,.0f} GiB where {free:,.0f} GiB are free ({source})"
    seconds = grown({n: found.seconds for n, found in known.items()}, pairs)
    if seconds > limits.seconds:
        return f"not run: needs {seconds:,.0f} s, more than {limits.seconds:,.0f} s ({source})"
    return None
