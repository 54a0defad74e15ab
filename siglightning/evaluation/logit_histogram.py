"""How the logits of matching pairs and of all others are spread, counted without the matrix of all logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

_BINS = 256  # of cosines from -1 to 1; at t = 10 a bin is 0.08 wide in logits, at t = 100 it is 0.8
_MOST_PAIRS = 2**24  # counted at most, so that the cost of a validation does not grow with the square of its size
_CHUNK = 256  # pictures at a time


@dataclass(frozen=True)
class LogitHistogram:
    """Counts of logits in bins of one width.

    Attributes:
        edges: ends of the bins in logits, ascending, one more than bins.
        positives: matching pairs in each bin.
        negatives: all other pairs in each bin.
    """

    edges: list[float]
    positives: list[int]
    negatives: list[int]


@torch.no_grad()
def logit_histogram(
    image_embeds: Tensor,
    text_embeds: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    scale: float,
    bias: float = 0.0,
    most_pairs: int = _MOST_PAIRS,
) -> LogitHistogram | None:
    """Count the logits ``scale * cosine + bias`` of pictures with all texts.

    Bins are of equal width from ``bias - scale`` to ``bias + scale``; empty ones on either side are left out. A cosine
    that rounding put beyond one is in the outermost bin, and one that is not a number is in none. Of sets with more
    than ``most_pairs`` pairs some pictures are taken, evenly spread.

    Args:
        image_embeds: ``[N, d]``, unit length.
        text_embeds: ``[M, d]``, unit length, on the same device.
        image_ids: int64 ``[N]``.
        text_ids: int64 ``[M]``; equal ids match.
        scale: exp t'.
        bias: b.
        most_pairs: pairs to count; one picture is counted in any case.

    Returns:
        ``None`` where there is no pair to count.
    """
    if not len(image_embeds) or not len(text_embeds):
        return None
    rows = torch.arange(0, len(image_embeds), -(-len(image_embeds) // max(1, most_pairs // len(text_embeds))))
    counts = torch.zeros(2, _BINS, dtype=torch.int64)
    for part in torch.split(rows, _CHUNK):
        cosines = image_embeds[part].float() @ text_embeds.float().T
        matches = image_ids[part, None] == text_ids
        counts += torch.stack([_counted(cosines[matches]), _counted(cosines[~matches])])
    filled = counts.sum(0).nonzero().flatten().tolist()
    if not filled:
        return None
    first, last = filled[0], filled[-1] + 1
    edges = [bias + scale * (2 * number / _BINS - 1) for number in range(first, last + 1)]
    positives, negatives = counts[:, first:last].tolist()
    return LogitHistogram(edges, positives, negatives)


def _counted(cosines: Tensor) -> Tensor:
    known = cosines[~cosines.isnan()].double()
    numbers = ((known + 1) * (_BINS / 2)).floor().clamp(0, _BINS - 1).long()
    return torch.bincount(numbers, minlength=_BINS).cpu()
