"""Orders of an epoch: which sample stands where, each a pure function of (seed, epoch)."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from siglightning.data.draws import permutation, uniform

Order = Callable[[int], NDArray[np.int64] | range]
"""From the epoch to the positions of its samples, integers ``[N]``, N the same in every epoch."""


def shuffled(num_samples: int, seed: int) -> Order:
    """Every sample once, in a random order."""
    return lambda epoch: permutation("order", seed, epoch, num_samples)


def as_they_are(num_samples: int) -> Order:
    """Every sample once, in the order of the data set; takes no memory, however long an epoch is."""
    return lambda epoch: range(num_samples)


def in_blocks(bounds: NDArray[np.int64], seed: int, blocks_at_once: int = 10) -> Order:
    """Every sample once; blocks of neighbours are shuffled, and then samples within some blocks at a time.

    For data that lie in files of many samples: no more than `blocks_at_once` files are read at a time.

    Args:
        bounds: int64 ``[blocks + 1]``, where each block begins, and where the last ends.
        seed: of the run.
        blocks_at_once: blocks whose samples mix.
    """
    sizes, last = np.diff(bounds), len(bounds) - 1

    def order(epoch: int) -> NDArray[np.int64]:
        blocks = permutation("order", seed, epoch, last)
        keys = uniform("order", seed, epoch, np.arange(bounds[-1], dtype=np.int64), 2)[:, 1]
        groups = [blocks[first : first + blocks_at_once] for first in range(0, last, blocks_at_once)]
        mixed = []
        for group in groups:
            rows = np.concatenate([np.arange(bounds[b], bounds[b] + sizes[b], dtype=np.int64) for b in group])
            mixed.append(rows[np.argsort(keys[rows], kind="stable")])
        return np.concatenate(mixed)

    return order


def shares(counts: NDArray[np.int64], temperature: float) -> NDArray[np.float64]:
    """How often each group is to be drawn: in proportion to ``counts ** (1 / temperature)``.

    The exponent is that of multilingual BERT and mT5 (Xue et al. 2021, "mT5", section 3.1): 1 leaves the shares as
    they occur, large temperatures make them equal.

    Args:
        counts: int64 ``[groups]``.
        temperature: at least 1; infinity is allowed.

    Returns:
        float64 ``[groups]``, sum 1; groups without samples get nothing.
    """
    weights = np.where(counts > 0, np.maximum(counts, 1) ** (1 / temperature), 0.0)
    return np.asarray(weights / weights.sum(), dtype=np.float64)


def balanced(groups: NDArray[np.int64], seed: int, temperature: float) -> Order:
    """As many samples as there are, drawn from groups (languages) in the shares of :func:`shares`.

    Each group goes through its samples in rounds, everyone once before anyone again, over the ends of epochs: a common
    language takes several epochs for one round, a rare one makes several rounds in one.

    Args:
        groups: int64 ``[N]``, the group of each sample, counted from 0.
        seed: of the run.
        temperature: see :func:`shares`.
    """
    counts = np.bincount(groups)
    quotas = _whole_numbers(shares(counts, temperature) * len(groups))
    starts = np.concatenate([[0], np.cumsum(counts)])
    by_group = np.argsort(groups, kind="stable")

    def order(epoch: int) -> NDArray[np.int64]:
        drawn = [
            _rounds(by_group[starts[group] : starts[group + 1]], epoch * quota, quota, seed)
            for group, quota in enumerate(quotas)
            if quota
        ]
        whole = np.concatenate(drawn).astype(np.int64)
        return whole[permutation("order", seed, epoch, len(whole))]

    return order


def _rounds(rows: NDArray[np.int64], first: int, count: int, seed: int) -> NDArray[np.int64]:
    """Stretch ``first .. first + count`` of an endless sequence: the rows again and again, each time shuffled anew."""
    begin, end = first // len(rows), -(-(first + count) // len(rows))
    keys = [uniform("language", seed, number, rows)[:, 0] for number in range(begin, end)]
    passes = np.concatenate([rows[np.argsort(key, kind="stable")] for key in keys])
    return passes[first - begin * len(rows) :][:count]


def _whole_numbers(quotas: NDArray[np.float64]) -> list[int]:
    """Rounded so that the sum stays: the largest remainders are rounded up."""
    floors = np.floor(quotas).astype(np.int64)
    missing = round(float(quotas.sum())) - int(floors.sum())
    floors[np.argsort(floors - quotas, kind="stable")[:missing]] += 1
    return [int(value) for value in floors]
