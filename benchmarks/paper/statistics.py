"""What three seeds can tell: paired t-intervals, and a rule that turns them into one of three words.

Runs of one seed share their first weights and the order of their data, so two settings are compared seed by seed. The
intervals cover what varies with the seed, not the choice of test pictures, which are the same for all.
"""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Literal

CONFIDENCE = 0.95
POWER = 0.80
MOST_SEEDS = 1000
Word = Literal["holds here", "does not", "cannot be told at this scale"]
HOLDS, DOES_NOT, UNTOLD = ("holds here", "does not", "cannot be told at this scale")


def t_probability(t: float, df: int) -> float:
    """``P(T <= t)`` of Student's t with a whole number of degrees of freedom.

    Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4 (finite sums).
    """
    angle = math.atan(t / math.sqrt(df))
    cosine, sine = math.cos(angle), math.sin(angle)
    term = total = cosine if df % 2 else 1.0
    for k in range(3 if df % 2 else 2, df - 1, 2):
        term *= cosine**2 * (k - 1) / k
        total += term
    if df == 1:
        return 0.5 + angle / math.pi
    return 0.5 + (angle + sine * total) / math.pi if df % 2 else 0.5 * (1 + sine * total)


@cache
def t_quantile(probability: float, df: int) -> float:
    """The t below which Student's t lies with a probability in (0.5, 1), by bisection to 1e-10.

    Raises:
        ValueError: a probability outside that range, or no degree of freedom.
    """
    if not 0.5 < probability < 1 or df < 1:
        raise ValueError(f"Expected a probability in (0.5, 1) and df of at least 1, got {probability} and {df}.")
    low, high = 0.0, 1.0
    while t_probability(high, df) < probability:
        low, high = high, 2 * high
    while high - low > 1e-10 * max(1.0, high):
        middle = (low + high) / 2
        low, high = (middle, high) if t_probability(middle, df) < probability else (low, middle)
    return (low + high) / 2


@dataclass(frozen=True)
class Interval:
    """Mean of paired differences with a two-sided t-interval; infinite where one difference has no spread.

    Attributes:
        mean: of the differences.
        low: lower end.
        high: upper end.
        sd: standard deviation of the differences; NaN for one.
        n: differences, one a seed.
    """

    mean: float
    low: float
    high: float
    sd: float
    n: int


def paired_interval(differences: Sequence[float]) -> Interval:
    """The interval of the mean difference at ``CONFIDENCE``.

    Raises:
        ValueError: no differences.
    """
    if not differences:
        raise ValueError("Expected at least one pair of runs with the same seed, got none.")
    mean, n = statistics.fmean(differences), len(differences)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, math.nan, 1)
    sd = statistics.stdev(differences)
    half = t_quantile((1 + CONFIDENCE) / 2, n - 1) * sd / math.sqrt(n)
    return Interval(mean, mean - half, mean + half, sd, n)


def detectable_effect(sd: float, n: int) -> float:
    """The smallest true difference that ``n`` pairs find with probability ``POWER``: ``(t_.975 + t_.8) sd / sqrt n``.

    Both quantiles have ``n - 1`` degrees of freedom: the usual approximation of the noncentral t by a shifted one.
    """
    return (t_quantile((1 + CONFIDENCE) / 2, n - 1) + t_quantile(POWER, n - 1)) * sd / math.sqrt(n)


def provable_margin(sd: float, n: int) -> float:
    """The margin within which the interval of ``n`` equal pairs lies with probability ``POWER``.

    ``(t_.975 + t_.9) sd / sqrt n``: the mean may leave zero on either side, so each side has half of what may fail.
    """
    return (t_quantile((1 + CONFIDENCE) / 2, n - 1) + t_quantile((1 + POWER) / 2, n - 1)) * sd / math.sqrt(n)


def seeds_needed(sd: float, effect: float, least: Callable[[float, int], float] = detectable_effect) -> int | None:
    """The fewest pairs for which ``least(sd, pairs)`` is at most ``effect``; ``None`` beyond 1,000."""
    few, many = 1, MOST_SEEDS  # too few, and enough if any number is
    if least(sd, many) > effect:
        return None
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if least(sd, middle) <= effect else (middle, many)
    return many


@dataclass(frozen=True)
class Claim:
    """One comparison that the paper makes, as differences of two settings here.

    Attributes:
        text: what is compared, "sigmoid over softmax at 64 pairs".
        differences: by seed; ``more`` claims that they are positive.
        margin: the smallest difference that matters, in the metric's unit.
        kind: ``more``: the first setting is better. ``no more``: it is not. ``same``: the two differ by less than the
            margin.
        unit: of the differences as they are shown, and the factor to it.
        decides: whether the word of the study rests on it; others are listed beside it.
    """

    text: str
    differences: Sequence[float]
    margin: float = 0.01
    kind: Literal["more", "no more", "same"] = "more"
    unit: tuple[str, float] = ("points", 100.0)
    decides: bool = True

    @property
    def interval(self) -> Interval:
        """Of the mean difference."""
        return paired_interval(self.differences)

    @property
    def word(self) -> Word:
        """The rule.

        ``more`` does not hold where the whole interval is below the margin, so that a difference too small to matter
        is a "no", too; of other intervals it holds for those above zero. ``no more`` is its opposite. ``same`` holds
        where the whole interval lies within the margin, and does not where it lies outside. All else cannot be told.
        """
        if not self.differences:
            return UNTOLD
        low, high = self.interval.low, self.interval.high
        if self.kind == "same":
            within, outside = -self.margin < low and high < self.margin, high < -self.margin or low > self.margin
            return HOLDS if within else DOES_NOT if outside else UNTOLD
        yes, no = (HOLDS, DOES_NOT) if self.kind == "more" else (DOES_NOT, HOLDS)
        return no if high < self.margin else yes if low > 0 else UNTOLD

    def sentence(self) -> str:
        """What was found, in figures; where it cannot be told, what could have been, and how many seeds it takes."""
        if not self.differences:
            return f"{self.text}: no pair of runs with the same seed"
        found, (unit, factor) = self.interval, self.unit
        shown = f"{self.text}: {found.mean * factor:+.2f} {unit}"
        if found.n == 1:
            return f"{shown}, one seed, which has no spread"
        shown += f" (95 % interval {found.low * factor:+.2f} to {found.high * factor:+.2f}, {found.n} seeds)"
        return shown + (f"; {self._missing()}" if self.word == UNTOLD else "")

    def _missing(self) -> str:
        (unit, factor), same = self.unit, self.kind == "same"
        least = provable_margin if same else detectable_effect
        wanted = seeds_needed(self.interval.sd, self.margin, least)
        count = f"{wanted} seeds" if wanted is not None else f"more than {MOST_SEEDS:,} seeds"
        shown = f"{least(self.interval.sd, self.interval.n) * factor:.2f} {unit}"
        could = f"equality within {shown} could have been shown" if same else f"{shown} could have been detected"
        return f"{could} (80 % power), {self.margin * factor:g} {unit} would take {count}"


def conclude(claims: Sequence[Claim]) -> Word:
    """The word for a study: it holds where all claims that decide do, does not where any of them does not.

    Asking for all is a test of its own level. "Does not" for any of k claims can be wrong in up to k times 2.5 % of
    studies; pages list every claim with its interval.
    """
    words = {claim.word for claim in claims if claim.decides}
    return HOLDS if words == {HOLDS} else DOES_NOT if DOES_NOT in words else UNTOLD


def differences(first: Mapping[int, float], second: Mapping[int, float]) -> list[float]:
    """First less second for every seed that both have, in the order of seeds."""
    return [first[seed] - second[seed] for seed in sorted(first.keys() & second.keys())]


def spread(values: Sequence[float], factor: float = 100.0) -> str:
    """Mean and standard deviation, "12.3 ± 0.4"; without the latter for one value, a dash for none."""
    if not values:
        return "-"
    mean = f"{statistics.fmean(values) * factor:.1f}"
    return f"{mean} ± {statistics.stdev(values) * factor:.1f}" if len(values) > 1 else mean
