"""Measured values with their chance level and a bootstrap interval."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

_DRAWS_AT_ONCE = 4_000_000  # indices held at a time: 32 MB of int64


@dataclass(frozen=True)
class MetricValue:
    """A measured mean, with what guessing would give and how far to trust it.

    Attributes:
        value: the mean over all queries or samples.
        chance: its expectation under random scores, in the same unit; NaN when not defined.
        low: lower end of the 95 % interval.
        high: upper end of the 95 % interval.
        count: number of queries or samples behind the mean.
    """

    value: float
    chance: float
    low: float
    high: float
    count: int


def bootstrap_interval(
    values: Tensor,
    *,
    groups: Tensor | None = None,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Percentile bootstrap interval of the mean, each column with the same resamples.

    Memory is bounded whatever the number of samples: the draws are made in blocks of 32 MB.

    Args:
        values: ``[n]`` or ``[n, K]``, one row for each sample; any real dtype, on any device.
        groups: int64 ``[n]``; samples of one group are drawn together, since they are not independent (several
            captions of one image). Default: every sample is its own group.
        num_resamples: number of bootstrap samples.
        confidence: coverage aimed at, in (0, 1).
        seed: seed of the draws, which do not touch the global generator.

    Returns:
        Lower and upper ends, float64 ``[K]`` (``[]`` for one-dimensional values) on the CPU.

    Raises:
        ValueError: no samples, groups of another length, or a confidence outside (0, 1).

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13; groups: the cluster bootstrap.
    """
    if len(values) == 0:
        raise ValueError("A bootstrap interval needs at least one sample, got none. Check that the test set has rows.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}. Use 0.95 for a 95 % interval.")
    sums, sizes = _group_sums(values.detach().double().cpu().reshape(len(values), -1), groups)
    means = _resampled_means(sums, sizes, num_resamples, seed)
    tail = (1 - confidence) / 2
    ends = torch.quantile(means, torch.tensor([tail, 1 - tail], dtype=torch.float64), dim=0)
    low, high = ends.reshape(2, *values.shape[1:])
    return low, high


def mean_with_interval(
    values: Tensor, chances: list[float], *, groups: Tensor | None = None, num_resamples: int = 1000, seed: int = 0
) -> list[MetricValue]:
    """Column means with 95 % bootstrap intervals.

    Args:
        values: ``[n, K]``, one row for each sample, one column for each metric.
        chances: the chance level of each of the K columns.
        groups: see `bootstrap_interval`.
        num_resamples: see `bootstrap_interval`.
        seed: see `bootstrap_interval`.

    Returns:
        One `MetricValue` for each column.
    """
    low, high = bootstrap_interval(values, groups=groups, num_resamples=num_resamples, seed=seed)
    means = values.double().mean(0).cpu()
    ends = zip(means.tolist(), chances, low.tolist(), high.tolist(), strict=True)
    return [MetricValue(mean, chance, lower, upper, len(values)) for mean, chance, lower, upper in ends]


def counts_interval(
    counts: Tensor,
    statistic: Callable[[Tensor], Tensor],
    *,
    num_resamples: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile bootstrap interval of a statistic that depends on the samples only through counts of their kinds.

    Drawing n samples with replacement and counting their kinds is one multinomial draw, so that resamples cost no
    pass over the samples.

    Args:
        counts: int64 ``[K]``, samples of each kind, at least one in all.
        statistic: counts float64 ``[R, K]`` of R resamples to values ``[R]``.
        num_resamples: number of bootstrap samples.
        confidence: coverage aimed at, in (0, 1).
        seed: seed of the draws, which do not touch a global generator.

    Returns:
        Lower and upper end.
    """
    total = int(counts.sum())
    generator, shares = np.random.default_rng(seed), counts.double().numpy() / total
    block = max(1, _DRAWS_AT_ONCE // len(counts))
    sizes = [min(block, num_resamples - start) for start in range(0, num_resamples, block)]
    draws = (torch.from_numpy(generator.multinomial(total, shares, size=size)).double() for size in sizes)
    values = torch.cat([statistic(draw) for draw in draws])
    tail = (1 - confidence) / 2
    low, high = torch.quantile(values.double(), torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return low, high


def statistics_with_interval(
    statistic: Callable[[Tensor], Tensor],
    num_samples: int,
    chances: Sequence[float],
    *,
    counts: Sequence[int] | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> list[MetricValue]:
    """Values of statistics that are no means, with 95 % bootstrap intervals.

    The interval is that of the percentiles, moved by the bootstrap's own estimate of bias, the mean of resamples minus
    the value. Average precision of rare classes needs that: a positive that a resample holds twice ranks with itself,
    so that resamples score higher than the set they are drawn from.

    Args:
        statistic: from weights float64 ``[R, n]``, how often each of n samples was drawn in each of R resamples, to the
            K statistics of each resample ``[R, K]``; NaN where one is not defined.
        num_samples: n.
        chances: the chance level of each of the K statistics.
        counts: what the K values are founded on; the samples by default.
        num_resamples: number of bootstrap samples; memory is bounded whatever their number.
        seed: of the draws, which do not touch the global generator.

    Returns:
        One `MetricValue` for each statistic. Resamples in which it is not defined are left out of its interval.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapters 10 (bias) and 13 (percentiles).
    """
    values = statistic(torch.ones(1, num_samples, dtype=torch.float64))[0]
    generator = torch.Generator().manual_seed(seed)
    block = max(1, _DRAWS_AT_ONCE // num_samples)
    resampled = []
    for start in range(0, num_resamples, block):
        shape = (min(block, num_resamples - start), num_samples)
        draws = torch.randint(num_samples, shape, generator=generator)
        weights = torch.zeros(shape, dtype=torch.float64)
        resampled.append(statistic(weights.scatter_add_(1, draws, torch.ones_like(weights))))
    tails = torch.tensor([0.025, 0.975], dtype=torch.float64)
    drawn = torch.cat(resampled)
    moves = drawn - values  # as differences, lest rounding part a statistic that never moves from its interval
    low, high = values + torch.nanquantile(moves - moves.nanmean(0), tails, dim=0)
    low = torch.where((drawn < 0).any(0), low, low.clamp(min=0))  # what is never negative has no negative interval
    counts = [num_samples] * len(values) if counts is None else counts
    columns = zip(values.tolist(), chances, low.tolist(), high.tolist(), counts, strict=True)
    return [MetricValue(*column) for column in columns]


def _group_sums(values: Tensor, groups: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum ``[C, K]`` and size ``[C]`` of each of the C groups."""
    if groups is None:
        return values, torch.ones(len(values), dtype=torch.float64)
    if groups.shape != values.shape[:1]:
        raise ValueError(
            f"groups needs one id for each of the {len(values)} samples, got shape {list(groups.shape)}. "
            "Pass the ids in the order of the samples."
        )
    _, index, sizes = torch.unique(groups.cpu(), return_inverse=True, return_counts=True)
    sums = torch.zeros(len(sizes), values.shape[1], dtype=torch.float64).index_add_(0, index, values)
    return sums, sizes.double()


def _resampled_means(sums: Tensor, sizes: Tensor, num_resamples: int, seed: int) -> Tensor:
    """Means ``[num_resamples, K]`` over groups drawn with replacement."""
    generator = torch.Generator().manual_seed(seed)
    num_groups = len(sizes)
    block = max(1, _DRAWS_AT_ONCE // num_groups)
    means = []
    for start in range(0, num_resamples, block):
        shape = (min(block, num_resamples - start), num_groups)
        draws = torch.randint(num_groups, shape, generator=generator)
        total = torch.stack([column[draws].sum(1) for column in sums.unbind(1)], dim=1)
        means.append(total / sizes[draws].sum(1, keepdim=True))
    return torch.cat(means)
