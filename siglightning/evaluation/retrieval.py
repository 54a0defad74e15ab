"""Exact retrieval between images and texts, with several right answers on either side.

Nothing here depends on how rows were split over processes or batches: gather the embeddings, then call once.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from siglightning.evaluation.bootstrap import MetricValue, mean_with_interval
from siglightning.evaluation.tiles import PairTiles, require_integer_ids, row_norms

RECALL_CUTOFFS = (1, 5, 10)

# A dot product of unit rows differs by up to half an fp32 eps with its place in a matrix product (measured: 6e-8
# over d = 64 to 768), so equal embeddings would win or lose ties by luck. Scores this close are ties.
_TIE_IN_EPS = 4.0


def retrieval_ranks(
    queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor, chunk_size: int | None = None
) -> Tensor:
    """Rank of the best right answer of each query, with every tie counted against it.

    The rank is 1 plus the number of wrong gallery rows that score at least as high as the best right one. Scores that
    rounding cannot tell apart are ties. A NaN score counts as highest on a wrong row and lowest on a right one, so
    that broken embeddings never look good. A collapsed encoder is therefore last everywhere, not first.

    Args:
        queries: ``[Q, d]``; fp64 is kept, narrower types are computed in fp32.
        gallery: ``[G, d]``, on the same device.
        query_ids: int64 ``[Q]``.
        gallery_ids: int64 ``[G]``; a gallery row with the query's id is a right answer.
        chunk_size: side of a tile of scores; memory is two tiles, never ``Q * G`` nor ``chunk_size * G``.

    Returns:
        int64 ``[Q]``, 1 is best.

    Raises:
        ValueError: shapes that do not belong together, ids that are no integers, or a query without a right answer in
            the gallery.
    """
    tiles = PairTiles(queries, gallery, query_ids, gallery_ids, chunk_size)
    _num_matches(query_ids, gallery_ids)  # raises for a query that nothing can answer
    return _ranks(tiles, both_ways=False)[0]


def ranks_both_ways(
    image_embeds: Tensor,
    text_embeds: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    *,
    chunk_size: int | None = None,
    group: dist.ProcessGroup | None = None,
) -> tuple[Tensor, Tensor]:
    """Ranks as of :func:`retrieval_ranks`, of images among texts and of texts among images, out of one product.

    Args:
        image_embeds: ``[N, d]``, unit length.
        text_embeds: ``[M, d]``.
        image_ids: int64 ``[N]``.
        text_ids: int64 ``[M]``; equal ids match.
        chunk_size: see :func:`retrieval_ranks`.
        group: processes that share the work. Each hands over the same, all of it, on the group's device, and gets the
            same: the ranks of a single process.

    Returns:
        int64 ``[N]`` of the images as queries, and ``[M]`` of the texts.

    Raises:
        ValueError: see :func:`retrieval_ranks`, both ways.
    """
    tiles = PairTiles(image_embeds, text_embeds, image_ids, text_ids, chunk_size, group)
    _num_matches(image_ids, text_ids)
    _num_matches(text_ids, image_ids)
    return _ranks(tiles, both_ways=True)


def recall_at_k(ranks: Tensor, k: int) -> float:
    """Share of queries, in [0, 1], with a right answer among the first k; ranks as from `retrieval_ranks`."""
    return (ranks <= k).double().mean().item()


def mean_rank(ranks: Tensor) -> float:
    """Mean rank over the queries; 1 is best."""
    return ranks.double().mean().item()


def median_rank(ranks: Tensor) -> float:
    """Median rank over the queries, the mean of the middle two for an even number; 1 is best."""
    return torch.quantile(ranks.double(), 0.5).item()


def chance_recall_at_k(query_ids: Tensor, gallery_ids: Tensor, k: int) -> float:
    """Expected recall at k of a random order of the gallery.

    A query with m right answers among G misses all of them with probability ``C(G-m, k) / C(G, k)``
    (hypergeometric); the result is the mean over queries of one minus that.

    Args:
        query_ids: int64 ``[Q]``.
        gallery_ids: int64 ``[G]``.
        k: number of gallery rows looked at, at least 1.

    Raises:
        ValueError: ``k`` below 1, or a query without a right answer in the gallery.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}. Use 1, 5 or 10.")
    matches = _num_matches(query_ids, gallery_ids).double()
    size = len(gallery_ids)
    miss = torch.ones_like(matches)
    for drawn in range(min(k, size)):
        miss *= (size - drawn - matches).clamp(min=0) / (size - drawn)
    return (1 - miss).mean().item()


def chance_mean_rank(query_ids: Tensor, gallery_ids: Tensor) -> float:
    """Expected mean rank in a random order of the gallery, ``(G + 1) / (m + 1)`` for m right answers among G.

    Raises:
        ValueError: a query without a right answer in the gallery.
    """
    return ((len(gallery_ids) + 1) / (_num_matches(query_ids, gallery_ids).double() + 1)).mean().item()


def retrieval_metrics(
    image_embeds: Tensor,
    text_embeds: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    *,
    ranks: tuple[Tensor, Tensor] | None = None,
    cutoffs: Sequence[int] = RECALL_CUTOFFS,
    chunk_size: int | None = None,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, MetricValue]:
    """Recall and mean rank both ways, with chance levels and 95 % bootstrap intervals.

    Queries with equal ids are resampled together: captions of one image are not independent.

    Args:
        image_embeds: ``[N, d]``, unit length.
        text_embeds: ``[M, d]``, unit length.
        image_ids: int64 ``[N]``.
        text_ids: int64 ``[M]``; equal ids match.
        ranks: of :func:`ranks_both_ways`, where they are known already.
        cutoffs: the values of k.
        chunk_size: see `retrieval_ranks`.
        num_resamples: see `siglightning.evaluation.bootstrap_interval`.
        seed: see `siglightning.evaluation.bootstrap_interval`.

    Returns:
        ``i2t_recall@k`` (image queries, text gallery) and ``t2i_recall@k`` for every k, ``i2t_mean_rank`` and
        ``t2i_mean_rank``.

    Raises:
        ValueError: see `retrieval_ranks`.
    """
    if ranks is None:
        ranks = ranks_both_ways(image_embeds, text_embeds, image_ids, text_ids, chunk_size=chunk_size)
    metrics: dict[str, MetricValue] = {}
    ways = ("i2t", ranks[0], image_ids, text_ids), ("t2i", ranks[1], text_ids, image_ids)
    for direction, of_way, query_ids, gallery_ids in ways:
        chances = [chance_recall_at_k(query_ids, gallery_ids, k) for k in cutoffs]
        chances.append(chance_mean_rank(query_ids, gallery_ids))
        names = [f"{direction}_recall@{k}" for k in cutoffs] + [f"{direction}_mean_rank"]
        values = mean_with_interval(
            outcomes(of_way, cutoffs), chances, groups=query_ids, num_resamples=num_resamples, seed=seed
        )
        metrics |= dict(zip(names, values, strict=True))
    return metrics


def outcomes(ranks: Tensor, cutoffs: Sequence[int] = RECALL_CUTOFFS) -> Tensor:
    """What each query adds to the metrics, float64 ``[Q, K + 1]``: a hit within each cutoff, and its rank."""
    return torch.stack([*(ranks <= k for k in cutoffs), ranks], dim=1).double()


@torch.no_grad()
def _ranks(tiles: PairTiles, both_ways: bool) -> tuple[Tensor, Tensor]:
    """Ranks of rows among columns, and of columns among rows (all 1 unless asked for), in the order given.

    A first pass, over the tiles with matches, finds the score to beat; a second one, over all, counts the wrong
    answers that stay below it. What is not below is at least as high, or NaN.
    """
    sides = (tiles.rows, tiles.columns) if both_ways else (tiles.rows,)
    to_beat = _scores_to_beat(tiles, len(sides))
    below = [torch.zeros(len(side.labels), dtype=torch.int64, device=tiles.device) for side in sides]
    flags = torch.empty(tiles.side**2, dtype=tiles.dtype, device=tiles.device)
    ones = torch.ones(tiles.side, dtype=tiles.dtype, device=tiles.device)
    # Ones and zeros in the scores' own type, added up by products with ones: torch compares into booleans, and adds
    # up either, more slowly. Exact, since a tile has fewer than 2^24 rows.
    for tile in tiles:
        scores = tile.scores
        if tile.matches is not None:
            scores.masked_fill_(tile.matches, torch.inf)
        if both_ways:
            is_below = flags[: scores.numel()].view_as(scores)
            torch.lt(scores, to_beat[1][tile.columns], out=is_below)
            below[1][tile.columns] += torch.mv(is_below.T, ones[: len(scores)]).long()
        scores.lt_(to_beat[0][tile.rows, None])  # in their place: nobody needs the scores any more
        below[0][tile.rows] += torch.mv(scores, ones[: scores.shape[1]]).long()
    labels, others = tiles.rows.labels, tiles.columns.labels
    ranks = [
        side.as_given(1 + len(gallery) - _num_matches(side.labels, gallery) - tiles.reduced(count))
        for side, gallery, count in zip(sides, (others, labels), below, strict=False)
    ]
    return ranks[0], ranks[1] if both_ways else torch.ones_like(others)


def _scores_to_beat(tiles: PairTiles, num_sides: int) -> list[Tensor]:
    """The score from which on a wrong answer counts: the best right one, less what rounding may do to either."""
    sides = (tiles.rows, tiles.columns)[:num_sides]
    best = [torch.full_like(side.labels, -torch.inf, dtype=tiles.dtype) for side in sides]
    for tile in tiles.matching():
        assert tile.matches is not None
        right = tile.scores.masked_fill(~tile.matches | tile.scores.isnan(), -torch.inf)
        for values, span, axis in zip(best, (tile.rows, tile.columns), (1, 0), strict=False):
            values[span] = torch.maximum(values[span], right.amax(axis))
    norms = [row_norms(tiles.rows.rows), row_norms(tiles.columns.rows)]
    longest = [norms[1].max(), norms[0].max()]
    tie = _TIE_IN_EPS * torch.finfo(tiles.dtype).eps
    return [
        tiles.reduced(values, dist.ReduceOp.MAX) - tie * gallery * own
        for values, gallery, own in zip(best, longest, norms, strict=False)
    ]


def _num_matches(query_ids: Tensor, gallery_ids: Tensor) -> Tensor:
    """Number of right answers of each query, int64 ``[Q]``; raises when one has none."""
    if len(gallery_ids) == 0:
        raise ValueError("Retrieval needs a gallery of at least one row, got none. Check that the test set has rows.")
    require_integer_ids(query_ids, gallery_ids)
    known: Tensor
    counts: Tensor
    known, counts = torch.unique(gallery_ids, return_counts=True)
    place = torch.searchsorted(known, query_ids).clamp(max=len(known) - 1)
    answered = known[place] == query_ids
    if not answered.all():
        row = int((~answered).nonzero()[0])
        raise ValueError(
            f"Every query needs a right answer in the gallery; {int((~answered).sum())} of {len(query_ids)} have none, "
            f"first row {row} with id {int(query_ids[row])}. Leave such rows out, or check that images and texts "
            "carry the same ids."
        )
    return counts[place]
