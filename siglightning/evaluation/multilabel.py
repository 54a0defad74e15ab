"""Measures of multi-label predictions, each with a bootstrap interval over pictures."""

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import softplus

from siglightning.evaluation.bootstrap import MetricValue, statistics_with_interval
from siglightning.evaluation.reliability import Binning, BinSums, bin_edges, bin_numbers, calibration_statistic

# From weights [R, N] of N pictures, one row a resample, to the measure [R] of each.
Statistic = Callable[[Tensor], Tensor]


def multilabel_metrics(
    logits: Tensor,
    targets: Tensor,
    passed: Tensor,
    *,
    num_bins: int = 15,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, MetricValue]:
    """How good probabilities, rankings and decisions are.

    Intervals draw whole pictures, since the labels of one picture are not independent. A calibration error cannot be
    negative and grows with noise, so that its interval lies rather high, the more the fewer the pictures.

    Args:
        logits: of independent probabilities, ``[N, C]``: probability = sigmoid(logit).
        targets: zeros and ones ``[N, C]``.
        passed: bool ``[N, C]``, the labels that are given out.
        num_bins: bins of the calibration errors.
        num_resamples: bootstrap samples; fewer for a quick validation.
        seed: see `siglightning.evaluation.bootstrap_interval`.

    Returns:
        ``nll`` and ``brier``: means over all (picture, class) pairs, in nats and as a squared probability (Brier 1950).
        ``ece`` and ``ece_equal_mass``: see :func:`siglightning.evaluation.reliability.calibration_error`.
        ``mAP``: mean over classes of average precision, pictures of equal score entering together.
        ``macro_f1``: mean over classes of F1; ``micro_f1``: F1 of all pairs.
        ``coverage_error``: labels to read from the top until all true ones are read, mean over pictures; a true label
        stands behind others of its score (Schapire and Singer 2000, "BoosTexter", counted from 1; Tsoumakas et al.
        2010, "Mining multi-label data").

        Classes without a positive picture have no average precision and no recall: they are left out of mAP and
        macro F1, whose ``count`` is the number of classes that are left. Pictures without a true label are left out of
        the coverage error. ``chance`` is that of a random ranking where there is one: NaN for the others.

    Raises:
        ValueError: no pictures, or shapes that differ.
    """
    if len(logits) == 0 or not logits.shape == targets.shape == passed.shape:
        raise ValueError(
            f"Expected logits, targets and decisions of one shape [N, C] with N > 0, got {list(logits.shape)}, "
            f"{list(targets.shape)} and {list(passed.shape)}."
        )
    z, y, given = logits.detach().double().cpu(), targets.double().cpu(), passed.cpu()
    p = z.sigmoid()
    num_pictures = len(y)
    ranks, has_label = _coverage_ranks(z, y), (y.sum(1) > 0).double()
    in_macro = int((y.sum(0) > 0).sum())
    measures: dict[str, tuple[Statistic, float, int]] = {
        "nll": (_mean((softplus(z) - y * z).mean(1)), math.nan, num_pictures),
        "brier": (_mean((p - y).square().mean(1)), math.nan, num_pictures),
        "ece": (_calibration(p, y, num_bins, "equal_width"), math.nan, num_pictures),
        "ece_equal_mass": (_calibration(p, y, num_bins, "equal_mass"), math.nan, num_pictures),
        "mAP": (_mean_average_precision(z, y), _chance_precision(y), in_macro),
        "macro_f1": (_f1(given, y, micro=False), math.nan, in_macro),
        "micro_f1": (_f1(given, y, micro=True), math.nan, num_pictures),
        "coverage_error": (_mean(ranks, has_label), _chance_coverage(y), int(has_label.sum())),
    }
    statistics, chances, counts = zip(*measures.values(), strict=True)
    values = statistics_with_interval(
        lambda weights: torch.stack([statistic(weights) for statistic in statistics], dim=1),
        num_pictures,
        list(chances),
        counts=list(counts),
        num_resamples=num_resamples,
        seed=seed,
    )
    return dict(zip(measures, values, strict=True))


def _mean(values: Tensor, rows: Tensor | None = None) -> Statistic:
    """Weighted mean of values ``[N]`` over the rows that are marked with 1."""
    rows = torch.ones_like(values) if rows is None else rows
    return lambda weights: (weights @ (values * rows)) / (weights @ rows)


def _calibration(p: Tensor, y: Tensor, num_bins: int, binning: Binning) -> Statistic:
    """Calibration error with bins that stay where the whole set puts them."""
    sums = BinSums(len(p), num_bins)
    sums.add(slice(len(p)), bin_numbers(p, bin_edges(p, num_bins, binning)), p, y)
    return calibration_statistic(sums.gaps, p.shape[1])


def _f1(given: Tensor, y: Tensor, *, micro: bool) -> Statistic:
    decided = given.double()

    def statistic(weights: Tensor) -> Tensor:
        hits, positives, predicted = (weights @ part for part in (decided * y, y, decided))
        if micro:
            return 2 * hits.sum(1) / (positives + predicted).sum(1)
        return torch.where(positives > 0, 2 * hits / (positives + predicted), torch.nan).nanmean(1)

    return statistic


def _mean_average_precision(z: Tensor, y: Tensor) -> Statistic:
    classes = [_average_precision(scores, truths) for scores, truths in zip(z.unbind(1), y.unbind(1), strict=True)]
    return lambda weights: torch.stack([one_class(weights) for one_class in classes], dim=1).nanmean(1)


def _average_precision(scores: Tensor, truths: Tensor) -> Statistic:
    """Mean over positives of the precision among all that score as high or higher; NaN without positives."""
    order = scores.argsort(descending=True)
    ordered = scores[order]
    # Last place of each group of equal scores, and how many positives there are up to it.
    ends = torch.searchsorted(-ordered, -ordered, right=True) - 1
    places = truths[order].nonzero().flatten()
    last = ends[places]
    seen = torch.searchsorted(places, last, right=True) - 1

    def statistic(weights: Tensor) -> Tensor:
        if len(places) == 0:
            return torch.full((len(weights),), torch.nan, dtype=weights.dtype)
        weights = weights.float()[:, order]  # counts, which fp32 holds exactly up to 16 million, at half the memory
        positives = weights[:, places].double()
        precision = positives.cumsum(1)[:, seen] / weights.cumsum(1)[:, last].double().clamp(min=1)
        return (positives * precision).sum(1) / positives.sum(1)

    return statistic


def _chance_precision(y: Tensor) -> float:
    """Expected mAP when every order of the N pictures is equally likely, over classes with positives.

    The picture in place k is positive with probability m / N, and then (k - 1)(m - 1)/(N - 1) positives are expected
    before it: (H + (m - 1)/(N - 1) (N - H)) / N, with H the N-th harmonic number.
    """
    size, positives = len(y), y.sum(0)
    positives = positives[positives > 0]
    harmonic = (1 / torch.arange(1, size + 1, dtype=torch.float64)).sum()
    expected = (harmonic + (positives - 1) / max(size - 1, 1) * (size - harmonic)) / size
    return expected.mean().item()


def _coverage_ranks(z: Tensor, y: Tensor) -> Tensor:
    """Labels that score at least as high as the lowest true one, float64 ``[N]``; 0 without a true label."""
    lowest = torch.where(y > 0, z, torch.inf).amin(1, keepdim=True)
    return (z >= lowest).sum(1).double()


def _chance_coverage(y: Tensor) -> float:
    """Expected highest of k places drawn out of C, k (C + 1) / (k + 1), mean over pictures with labels."""
    labels = y.sum(1)
    labels = labels[labels > 0]
    return (labels * (y.shape[1] + 1) / (labels + 1)).mean().item()
