"""Is ``sigmoid(exp(t') x.y + b)`` the probability that a picture and a text belong together? Over all pairs."""

import math
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from torch import Tensor

from siglightning.evaluation.bootstrap import MetricValue, statistics_with_interval
from siglightning.evaluation.reliability import BinSums, ReliabilityBins, bin_edges, bin_numbers, calibration_statistic
from siglightning.evaluation.tiles import PairTiles

NUM_BINS = 15
# Side of a tile on CPUs, each of whose scores is held several times in fp64 and int64. With ranking's 2,048 calibration
# takes 2.2 to 2.5 times as long (6,144 x 12,288 pairs, d = 512, one thread).
_CPU_SIDE = 512
_FARTHEST = 20  # logits beyond share the outermost bins: probabilities of 2e-9, and of all but that


@dataclass(frozen=True, eq=False)
class PairCalibration:
    """What all N x M pairs of pictures and texts say.

    Attributes:
        equal_width: 15 bins of equal width in probability, those of the ECE.
        by_logit: bins one nat of logit wide, from -20 to 20. Nearly all pairs are negatives, and the first of the
            equal bins holds them all; these tell a stated 1e-6 from 1e-3.
        sums: of the equal bins, apart for each picture, in the order of their ids.
        num_texts: M.
    """

    equal_width: ReliabilityBins
    by_logit: ReliabilityBins
    sums: BinSums
    num_texts: int

    def metrics(self, *, num_resamples: int = 1000, seed: int = 0) -> dict[str, MetricValue]:
        """Calibration error and prior, with 95 % bootstrap intervals.

        Resamples draw pictures with all their pairs; the texts stay. Chance is not defined.

        Args:
            num_resamples: see :func:`siglightning.evaluation.bootstrap.statistics_with_interval`.
            seed: likewise.

        Returns:
            ``pair_ece``: mean gap of probability and share of matches, 15 bins of equal width weighted by their pairs;
            ``pair_prior``: the share of pairs that match; ``pair_mean_probability``: the mean probability, which
            is the prior that the model has learnt, that of the batches it was trained on.
        """
        stated, true = self.sums.probabilities.sum(1).cpu(), self.sums.positives.sum(1).cpu()
        error = calibration_statistic(self.sums.gaps.cpu(), self.num_texts)

        def statistics(weights: Tensor) -> Tensor:
            pairs = weights.sum(1) * self.num_texts
            return torch.stack([error(weights), weights @ true / pairs, weights @ stated / pairs], dim=1)

        names = ("pair_ece", "pair_prior", "pair_mean_probability")
        pairs = len(true) * self.num_texts
        values = statistics_with_interval(
            statistics, len(true), [math.nan] * 3, counts=[pairs] * 3, num_resamples=num_resamples, seed=seed
        )
        return dict(zip(names, values, strict=True))


@torch.no_grad()
def pair_calibration(
    image_embeds: Tensor,
    text_embeds: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    log_scale: float,
    bias: float,
    *,
    chunk_size: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> PairCalibration:
    """Reliability of the pair probability over all pairs, without the matrix.

    Cosines are those of the embeddings' type (fp32, or fp64); logits, probabilities and sums are fp64.

    Args:
        image_embeds: ``[N, d]``, unit length.
        text_embeds: ``[M, d]``, unit length.
        image_ids: int64 ``[N]``.
        text_ids: int64 ``[M]``; equal ids match, every other pair does not.
        log_scale: t', the logarithm of the factor.
        bias: b.
        chunk_size: side of a tile, see `siglightning.evaluation.retrieval_ranks`; memory is some ten tiles. By default
            512 on CPUs.
        group: see `siglightning.evaluation.ranks_both_ways`.

    Raises:
        ValueError: shapes that do not belong together, or embeddings that are not finite.

    Source: Zhai et al. 2023, arXiv:2303.15343, section 3.2 (the probability); Guo et al. 2017, arXiv:1706.04599,
    section 2 (ECE).
    """
    width = _CPU_SIDE if chunk_size is None and image_embeds.device.type == "cpu" else chunk_size
    tiles = PairTiles(image_embeds, text_embeds, image_ids, text_ids, width, group)
    for name, side in (("image", tiles.rows), ("text", tiles.columns)):
        if not bool(side.rows.isfinite().all()):
            raise ValueError(f"Calibration needs finite embeddings, got NaN or infinity in {name}s. Check the weights.")
    count, scale = len(tiles.rows.labels), math.exp(log_scale)
    edges = bin_edges(torch.empty(0), NUM_BINS)
    widths = BinSums(count, NUM_BINS, tiles.device)
    logits = BinSums(-(-count // tiles.side), 2 * _FARTHEST, tiles.device)  # a row for each row of tiles
    for tile in tiles:
        z = (tile.scores.double() * scale).add_(bias)
        p = z.sigmoid()
        widths.add(tile.rows, bin_numbers(p, edges), p, tile.matches)
        nats = z.floor_().clamp_(-_FARTHEST, _FARTHEST - 1).long().add_(_FARTHEST)
        block = tile.rows.start // tiles.side
        matches = None if tile.matches is None else tile.matches.reshape(1, -1)
        logits.add(slice(block, block + 1), nats.reshape(1, -1), p.reshape(1, -1), matches)
    for sums in (widths, logits):
        for values in (sums.counts, sums.probabilities, sums.positives):
            tiles.reduced(values)
    inner = torch.arange(1 - _FARTHEST, _FARTHEST, dtype=torch.float64).sigmoid()
    by_logit = replace(logits.bins(torch.cat([torch.zeros(1), inner, torch.ones(1)])), is_logarithmic=True)
    by_id = image_ids.argsort(stable=True).to(tiles.device)  # whatever the order in which pictures came
    for values in (widths.counts, widths.probabilities, widths.positives):
        values.copy_(tiles.rows.as_given(values)[by_id])
    return PairCalibration(widths.bins(edges), by_logit, widths, len(text_embeds))
