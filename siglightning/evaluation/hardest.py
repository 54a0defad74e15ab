"""The pairs that a model takes for matches although they are none (SigLIP paper, section 4.8)."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class HardNegative:
    """A picture and the caption of others that it is nearest to.

    Attributes:
        image: row of the picture.
        text: row of the caption that does not belong to it.
        cosine: of the two.
        own_text: row of the picture's own caption that is nearest to it.
        own_cosine: of the picture and that one.
    """

    image: int
    text: int
    cosine: float
    own_text: int
    own_cosine: float


@torch.no_grad()
def hardest_negatives(
    image_embeds: Tensor,
    text_embeds: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    count: int,
    chunk_size: int = 256,
) -> list[HardNegative]:
    """The ``count`` pictures with the highest cosine to a caption that is not theirs, highest first.

    Each picture comes once, with its hardest caption: the pairs of a picture with all wordings of one wrong caption
    would fill the page. The order is that of the logits, which are the same function of all cosines. Of equal pairs
    the first rows come first. A cosine that is not a number is lower than all others.

    Args:
        image_embeds: ``[N, d]``, unit length.
        text_embeds: ``[M, d]``, unit length, on the same device.
        image_ids: int64 ``[N]``.
        text_ids: int64 ``[M]``; equal ids match and are never negatives.
        count: pairs to find.
        chunk_size: pictures at a time; memory is ``chunk_size * M`` cosines, never ``N * M``.

    Returns:
        At most ``count`` pairs; fewer where pictures are fewer. Pictures without any negative or without a caption of
        their own are left out.
    """
    if not len(image_embeds) or not len(text_embeds):
        return []
    found = []
    for rows, ids in zip(torch.split(image_embeds, chunk_size), torch.split(image_ids, chunk_size), strict=True):
        cosines = (rows.float() @ text_embeds.float().T).nan_to_num(nan=-torch.inf)
        matches = ids[:, None] == text_ids
        negative, own = (cosines.masked_fill(mask, -torch.inf).max(1) for mask in (matches, ~matches))
        hardest = negative.values.masked_fill(own.values == -torch.inf, -torch.inf)
        found.append(torch.stack([hardest, own.values, negative.indices, own.indices]).double().cpu())
    table = torch.cat(found, dim=1)
    order = table[0].argsort(descending=True, stable=True)[:count].tolist()
    return [
        HardNegative(row, int(text), cosine, int(own_text), own_cosine)
        for row, (cosine, own_cosine, text, own_text) in zip(order, table[:, order].T.tolist(), strict=True)
        if cosine > -torch.inf
    ]
