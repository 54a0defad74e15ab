"""Exact retrieval between images and texts, with several right answers on either side.

Nothing here depends on how rows were split over processes or batches: gather the embeddings, then call once.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from siglightning.evaluation.bootstrap import MetricValue, mean_with_interval

RECALL_CUTOFFS = (1, 5, 10)

# A dot product of unit rows differs by up to half an fp32 eps with its place in a matrix product (measured: 6e-8
# over d = 64 to 768), so equal embeddings would win or lose ties by luck. Scores this close are ties.
_TIE_IN_EPS = 4.0


@torch.no_grad()
def retrieval_ranks(
    queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor, chunk_size: int = 256
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
        chunk_size: queries scored at a time; memory is ``chunk_size * G`` scores, never ``Q * G``.

    Returns:
        int64 ``[Q]``, 1 is best.

    Raises:
        ValueError: shapes that do not belong together, or a query without a right answer in the gallery.
    """
    _check_shapes(queries, gallery, query_ids, gallery_ids, chunk_size)
    _num_matches(query_ids, gallery_ids)  # raises for a query that nothing can answer
    dtype = torch.float64 if torch.float64 in (queries.dtype, gallery.dtype) else torch.float32
    queries, gallery = queries.to(dtype), gallery.to(dtype)
    longest = gallery.norm(dim=1).nan_to_num(0.0, 0.0).max()
    ranks = []
    for rows, ids in zip(torch.split(queries, chunk_size), torch.split(query_ids, chunk_size), strict=True):
        tie = _TIE_IN_EPS * torch.finfo(dtype).eps * longest * rows.norm(dim=1, keepdim=True).nan_to_num(0.0, 0.0)
        ranks.append(_ranks_of_block(rows @ gallery.T, ids[:, None] == gallery_ids, tie))
    return torch.cat(ranks)


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


def retrieval_metrics(
    image_embeds: Tensor,
    text_embeds: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    *,
    cutoffs: Sequence[int] = RECALL_CUTOFFS,
    chunk_size: int = 256,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, MetricValue]:
    """Recall both ways, with chance levels and 95 % bootstrap intervals.

    Queries with equal ids are resampled together: captions of one image are not independent.

    Args:
        image_embeds: ``[N, d]``, unit length.
        text_embeds: ``[M, d]``, unit length.
        image_ids: int64 ``[N]``.
        text_ids: int64 ``[M]``; equal ids match.
        cutoffs: the values of k.
        chunk_size: see `retrieval_ranks`.
        num_resamples: see `siglightning.evaluation.bootstrap_interval`.
        seed: see `siglightning.evaluation.bootstrap_interval`.

    Returns:
        ``i2t_recall@k`` (image queries, text gallery) and ``t2i_recall@k`` for every k.

    Raises:
        ValueError: see `retrieval_ranks`.
    """
    image, text = (image_embeds, image_ids), (text_embeds, text_ids)
    metrics: dict[str, MetricValue] = {}
    for direction, (queries, query_ids), (gallery, gallery_ids) in (("i2t", image, text), ("t2i", text, image)):
        ranks = retrieval_ranks(queries, gallery, query_ids, gallery_ids, chunk_size)
        hits = torch.stack([ranks <= k for k in cutoffs], dim=1)
        chances = [chance_recall_at_k(query_ids, gallery_ids, k) for k in cutoffs]
        values = mean_with_interval(hits, chances, groups=query_ids, num_resamples=num_resamples, seed=seed)
        metrics |= {f"{direction}_recall@{k}": value for k, value in zip(cutoffs, values, strict=True)}
    return metrics


def _ranks_of_block(scores: Tensor, matches: Tensor, tie: Tensor) -> Tensor:
    """Ranks ``[c]`` from scores and matches ``[c, G]``; ``tie [c, 1]`` is the distance below which scores are equal."""
    lowest = scores.masked_fill(~matches | scores.isnan(), -torch.inf).amax(1, keepdim=True) - tie
    at_least = (scores >= lowest) | scores.isnan()
    return 1 + (at_least & ~matches).sum(1)


def _num_matches(query_ids: Tensor, gallery_ids: Tensor) -> Tensor:
    """Number of right answers of each query, int64 ``[Q]``; raises when one has none."""
    if len(gallery_ids) == 0:
        raise ValueError("Retrieval needs a gallery of at least one row, got none. Check that the test set has rows.")
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


def _check_shapes(queries: Tensor, gallery: Tensor, query_ids: Tensor, gallery_ids: Tensor, chunk_size: int) -> None:
    if queries.ndim != 2 or gallery.ndim != 2 or queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"Expected queries [Q, d] and gallery [G, d], got {list(queries.shape)} and {list(gallery.shape)}. "
            "Embed both with the same model."
        )
    if query_ids.shape != queries.shape[:1] or gallery_ids.shape != gallery.shape[:1]:
        raise ValueError(
            f"Expected one id for each of {len(queries)} queries and {len(gallery)} gallery rows, got "
            f"{list(query_ids.shape)} and {list(gallery_ids.shape)}. Gather ids along with embeddings."
        )
    if len(queries) == 0:
        raise ValueError("Retrieval needs at least one query, got none. Check that the test set has rows.")
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}. Use 256.")
