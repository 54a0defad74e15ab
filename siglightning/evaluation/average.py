"""Retrieval averaged over test sets of the same pictures, such as those of several languages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from siglightning.evaluation.bootstrap import MetricValue, statistics_with_interval
from siglightning.evaluation.retrieval import RECALL_CUTOFFS, outcomes

NAMES = [f"{way}_{name}" for way in ("i2t", "t2i") for name in (*(f"recall@{k}" for k in RECALL_CUTOFFS), "mean_rank")]


@dataclass(frozen=True, eq=False)
class PictureOutcomes:
    """What each picture of a set adds to the metrics of retrieval, K of them in the order of ``NAMES``.

    Attributes:
        keys: of the N pictures.
        sums: float64 ``[N, K]``, over the queries that are the picture or its captions.
        counts: float64 ``[N, K]``, of these queries.
    """

    keys: Sequence[str]
    sums: Tensor
    counts: Tensor

    @classmethod
    def of(cls, keys: Sequence[str], owners: Tensor, ranks: tuple[Tensor, Tensor]) -> "PictureOutcomes":
        """From the ranks of :func:`siglightning.evaluation.ranks_both_ways`.

        Args:
            keys: of the N pictures.
            owners: int64 ``[M]``, row of the picture of each caption.
            ranks: ``[N]`` of the pictures, ``[M]`` of the captions.
        """
        own, said = (outcomes(of_way.cpu()) for of_way in ranks)
        texts = torch.zeros_like(own).index_add_(0, owners, said)
        captions = torch.zeros_like(own).index_add_(0, owners, torch.ones_like(said))
        return cls(keys, torch.cat([own, texts], dim=1), torch.cat([torch.ones_like(own), captions], dim=1))


def average_over_sets(
    sets: Mapping[str, PictureOutcomes],
    metrics: Mapping[str, Mapping[str, MetricValue]],
    *,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, MetricValue]:
    """The plain mean over sets of each metric of retrieval: every set weighs the same, however many queries it has.

    Of Crossmodal-3600 the mean over 36 languages of ``t2i_recall@1`` is the number that papers report. The interval
    resamples pictures, each with its captions in all sets at once, since what is hard in one language is hard in the
    next; it says how far other pictures would move the mean, not other languages.

    Args:
        sets: by name, at least one.
        metrics: of each set, for their chance levels.
        num_resamples: see :func:`siglightning.evaluation.bootstrap.statistics_with_interval`.
        seed: likewise.

    Returns:
        By the names of a set's metrics; ``count`` is the queries of all sets.

    Source: Thapliyal et al. 2022, arXiv:2205.12522 (the data); Zhai et al. 2023, arXiv:2303.15343, section 4 (the mean
    over languages).
    """
    place = {key: row for row, key in enumerate(dict.fromkeys(key for of_set in sets.values() for key in of_set.keys))}
    rows = [torch.tensor([place[key] for key in of_set.keys]) for of_set in sets.values()]

    def statistic(weights: Tensor) -> Tensor:
        total = torch.zeros(len(weights), len(NAMES), dtype=torch.float64)
        for of_rows, of_set in zip(rows, sets.values(), strict=True):
            drawn = weights[:, of_rows]
            total += (drawn @ of_set.sums) / (drawn @ of_set.counts)
        return total / len(sets)

    chances = [sum(metrics[name][metric].chance for name in sets) / len(sets) for metric in NAMES]
    counts = [sum(metrics[name][metric].count for name in sets) for metric in NAMES]
    values = statistics_with_interval(
        statistic, len(place), chances, counts=counts, num_resamples=num_resamples, seed=seed
    )
    return dict(zip(NAMES, values, strict=True))
