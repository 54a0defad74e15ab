"""Whether embeddings still tell things apart: their mean cosine and their effective rank."""

import torch
from torch import Tensor

_ROWS = 1024  # enough for either number; the cost of the rank grows with the rows, or with the dimensions if fewer


def collapse_metrics(image_embeds: Tensor, text_embeds: Tensor) -> dict[str, Tensor]:
    """``image_mean_cosine``, ``image_effective_rank`` and the same of ``text``, of the first 1,024 rows of a batch.

    Args:
        image_embeds: ``[b, d]``, unit length.
        text_embeds: ``[b, d]``, unit length.

    Returns:
        float32 scalars on the device of the embeddings.
    """
    values = {}
    for side, rows in (("image", image_embeds[:_ROWS]), ("text", text_embeds[:_ROWS])):
        values[f"{side}_mean_cosine"] = mean_cosine(rows).float()
        values[f"{side}_effective_rank"] = effective_rank(rows).float()
    return values


@torch.no_grad()
def mean_cosine(embeds: Tensor) -> Tensor:
    """Mean cosine of all pairs of different rows: near 1 when everything is embedded alike.

    The sum over all n * n cosines is the squared length of the column sums, less the diagonal: O(n d).

    Args:
        embeds: ``[n, d]``, unit length.

    Returns:
        A float64 scalar on the device of the embeddings; NaN for fewer than two rows.
    """
    rows = embeds.double()
    count = len(rows)
    return (rows.sum(0).square().sum() - rows.square().sum()) / (count * (count - 1) or torch.nan)


@torch.no_grad()
def effective_rank(embeds: Tensor) -> Tensor:
    """Number of directions that rows take up: the exponential of the entropy of the normalised singular values.

    Roy and Vetterli, "The effective rank: a measure of effective dimensionality" (EUSIPCO 2007), definition 2.1, of the
    rows as they are. Centred rows would do for directions that are lost one by one, but not for the commonest collapse:
    when all rows are alike, what centring leaves is noise, whose effective rank is high.

    The singular values are roots of the eigenvalues of the smaller Gram matrix, in float64: in float32 the rounding of
    hundreds of vanishing ones would add up to several directions.

    Args:
        embeds: ``[n, d]``.

    Returns:
        A float64 scalar on the device of the embeddings, from 1 (all rows on one line) to ``min(n, d)``; NaN for rows
        of zeros, and where a value is not finite.
    """
    rows = embeds.double()
    gram = rows.T @ rows if rows.shape[1] < rows.shape[0] else rows @ rows.T
    if not bool(gram.isfinite().all()):  # the solver would raise
        return torch.full((), torch.nan, dtype=torch.float64, device=gram.device)
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    entropy: Tensor = torch.special.entr(values / values.sum()).sum()
    return entropy.exp()
