"""Spikes of a loss, counted by one rule (SigLIP paper, section 4.7)."""

import math
from collections import deque
from collections.abc import Iterable
from typing import Any

import numpy as np

_TO_DEVIATION = 1.4826  # a normal distribution's standard deviation over its median absolute deviation


class SpikeCounter:
    """Counts how often a loss jumps above what it has just been.

    A loss is above when it exceeds the median of the last ``window`` losses by more than ``deviations`` robust standard
    deviations, 1.4826 times the median absolute deviation from the median (Hampel, 1974), and by more than ``share`` of
    the median. Losses above that follow each other are one spike. The window takes them in like any other: a loss that
    rises and stays is one spike, and then the new level. Nothing is counted before the window is half full.

    The median of a loss that falls lies above it, so that a spike in the first, steep part must be the higher to count.
    A loss that is not finite is above.

    Args:
        window: losses to compare with.
        deviations: robust standard deviations above the median.
        share: of the median; keeps the rounding of a loss that hardly varies from being counted.

    Attributes:
        count: spikes so far.

    Raises:
        ValueError: a window of fewer than four losses, or a negative threshold.
    """

    def __init__(self, window: int = 100, deviations: float = 8.0, share: float = 0.05) -> None:
        if window < 4 or deviations < 0 or share < 0:
            raise ValueError(
                "Expected a window of at least 4 losses, and deviations and share of at least 0, got "
                f"{window}, {deviations} and {share}. The defaults are 100, 8 and 0.05."
            )
        self.deviations, self.share = deviations, share
        self.count = 0
        self._recent: deque[float] = deque(maxlen=window)
        self._is_above = False

    def add(self, losses: Iterable[float]) -> None:
        """Take losses in the order of their steps."""
        for loss in losses:
            above = loss > self.threshold or not math.isfinite(loss)
            self.count += above and not self._is_above
            self._is_above = above
            self._recent.append(loss if math.isfinite(loss) else math.inf)

    @property
    def threshold(self) -> float:
        """What the next loss must exceed; infinite as long as too few are known."""
        window = self._recent.maxlen or 0
        if len(self._recent) < window / 2:
            return math.inf
        losses = np.array(self._recent)
        median = float(np.median(losses))
        if not math.isfinite(median):
            return math.inf
        spread = _TO_DEVIATION * float(np.median(np.abs(losses - median)))
        return median + max(self.deviations * spread, self.share * abs(median))

    def state_dict(self) -> dict[str, Any]:
        """Numbers and lists only, fit for a checkpoint."""
        return {"count": self.count, "recent": list(self._recent), "is_above": self._is_above}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from there; a shorter window keeps the newest losses."""
        self.count, self._is_above = int(state["count"]), bool(state["is_above"])
        self._recent.clear()
        self._recent.extend(state["recent"])
