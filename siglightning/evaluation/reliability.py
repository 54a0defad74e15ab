"""Do probabilities mean what they say? Bins of (picture, class) or (picture, text) pairs, and the calibration error."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Binning = Literal["equal_width", "equal_mass"]


@dataclass(frozen=True, eq=False)
class ReliabilityBins:
    """Pairs of a picture and a class, or of a picture and a text, by their probability; B bins.

    Attributes:
        edges: float64 ``[B + 1]``, ascending; a bin holds its lower edge and not its upper one, the last one both.
        counts: int64 ``[B]``, pairs in each bin.
        mean_probability: float64 ``[B]``; NaN where a bin is empty.
        positive_rate: float64 ``[B]``, share of pairs whose label is true; NaN where a bin is empty.
        is_logarithmic: whether they are to be looked at on a logarithmic scale.
    """

    edges: Tensor
    counts: Tensor
    mean_probability: Tensor
    positive_rate: Tensor
    is_logarithmic: bool = False

    @property
    def error(self) -> float:
        """The expected calibration error over these bins."""
        gaps = (self.mean_probability - self.positive_rate).nan_to_num().abs()
        return ((gaps * self.counts).sum() / self.counts.sum()).item()


def bin_edges(probabilities: Tensor, num_bins: int = 15, binning: Binning = "equal_width") -> Tensor:
    """Edges float64 ``[num_bins + 1]`` from 0 to 1.

    Equal mass puts them at quantiles of all probabilities. Equal probabilities are never parted, so that such bins hold
    equally many pairs only where probabilities differ.

    Args:
        probabilities: of any shape.
        num_bins: number of bins.
        binning: ``equal_width`` or ``equal_mass``.

    Raises:
        ValueError: fewer than one bin.
    """
    if num_bins < 1:
        raise ValueError(f"Expected at least one bin, got {num_bins}. 15 are usual.")
    edges = torch.linspace(0, 1, num_bins + 1, dtype=torch.float64)
    if binning == "equal_mass":
        ordered = probabilities.double().flatten().sort().values.cpu()
        edges[1:-1] = ordered[torch.arange(1, num_bins) * len(ordered) // num_bins]
    return edges


def bin_numbers(probabilities: Tensor, edges: Tensor) -> Tensor:
    """The bin of each probability, int64 in the shape of ``probabilities``."""
    return torch.bucketize(probabilities.double(), edges[1:-1].to(probabilities.device), right=True)


class BinSums:
    """Pairs by bin, added up block by block, and apart for each row: resamples of rows are then sums of these.

    Args:
        num_rows: N; 1 where nobody asks for rows.
        num_bins: B.
        device: of the blocks.

    Attributes:
        counts: int64 ``[N, B]``, pairs.
        probabilities: float64 ``[N, B]``, sums of their probabilities.
        positives: float64 ``[N, B]``, how many are true.
    """

    def __init__(self, num_rows: int, num_bins: int, device: torch.device | str = "cpu") -> None:
        self.counts = torch.zeros(num_rows, num_bins, dtype=torch.int64, device=device)
        self.probabilities, self.positives = (torch.zeros_like(self.counts, dtype=torch.float64) for _ in range(2))

    def add(self, rows: slice, numbers: Tensor, probabilities: Tensor, targets: Tensor | None = None) -> None:
        """Add a block.

        Args:
            rows: those of the block.
            numbers: bins int64 ``[r, c]``.
            probabilities: float64 ``[r, c]``.
            targets: zeros and ones ``[r, c]``; ``None`` where all are zeros.
        """
        self.counts[rows].scatter_add_(1, numbers, torch.ones_like(numbers))
        self.probabilities[rows].scatter_add_(1, numbers, probabilities)
        if targets is not None:
            self.positives[rows].scatter_add_(1, numbers, targets.double())

    @property
    def gaps(self) -> Tensor:
        """Sums of probability less truth, float64 ``[N, B]``: their absolute values over all pairs make the ECE."""
        return self.probabilities - self.positives

    def bins(self, edges: Tensor) -> ReliabilityBins:
        """All rows together; ``edges`` float64 ``[B + 1]`` are what the numbers were found with."""
        counts = self.counts.sum(0).cpu()
        probabilities, positives = self.probabilities.sum(0).cpu(), self.positives.sum(0).cpu()
        return ReliabilityBins(edges.cpu(), counts, probabilities / counts, positives / counts)


def reliability_bins(
    probabilities: Tensor, targets: Tensor, num_bins: int = 15, binning: Binning = "equal_width"
) -> ReliabilityBins:
    """Mean probability and share of true labels in each bin, over all (picture, class) pairs.

    Args:
        probabilities: ``[N, C]``.
        targets: zeros and ones ``[N, C]``.
        num_bins: number of bins.
        binning: see :func:`bin_edges`.

    Source: DeGroot and Fienberg 1983 (the diagram); Nguyen and O'Connor 2015, arXiv:1508.05154 (equal mass).
    """
    p, y = probabilities.double().flatten()[None], targets.double().flatten()[None]
    edges = bin_edges(p, num_bins, binning)
    sums = BinSums(1, num_bins)
    sums.add(slice(0, 1), bin_numbers(p, edges), p, y)
    return sums.bins(edges)


def calibration_statistic(gaps: Tensor, num_columns: int) -> Callable[[Tensor], Tensor]:
    """The calibration error of resampled rows.

    Args:
        gaps: of :class:`BinSums`, ``[N, B]``.
        num_columns: pairs of each row.

    Returns:
        From weights float64 ``[R, N]``, how often each row was drawn, to errors ``[R]``.
    """
    return lambda weights: (weights @ gaps).abs().sum(1) / (weights.sum(1) * num_columns)


def calibration_error(
    probabilities: Tensor,
    targets: Tensor,
    num_bins: int = 15,
    binning: Binning = "equal_width",
    *,
    per_class: bool = False,
) -> Tensor:
    """Expected calibration error: mean gap of probability and share of true labels, bins weighted by their pairs.

    By default over all N x C pairs at once, as one binary problem. Most pairs are negatives with a small probability,
    and gaps of different classes may cancel in a bin; ``per_class`` bins each class on its own.

    Args:
        probabilities: ``[N, C]``.
        targets: zeros and ones ``[N, C]``.
        num_bins: number of bins.
        binning: see :func:`bin_edges`.
        per_class: one error a class; their mean is the classwise ECE.

    Returns:
        float64 ``[]``, or ``[C]`` with ``per_class``.

    Source: Naeini et al. 2015, "Obtaining well calibrated probabilities using Bayesian binning"; classwise: Kull et al.
    2019, arXiv:1910.12656, section 2.
    """
    if not per_class:
        return torch.tensor(reliability_bins(probabilities, targets, num_bins, binning).error, dtype=torch.float64)
    columns = zip(probabilities.unbind(1), targets.unbind(1), strict=True)
    return torch.tensor([reliability_bins(p, y, num_bins, binning).error for p, y in columns], dtype=torch.float64)
