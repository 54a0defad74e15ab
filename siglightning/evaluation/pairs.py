"""Mean logits of pairs and of negatives, without the matrix of all logits."""

from typing import NamedTuple

import torch
from torch import Tensor


class PairLogits(NamedTuple):
    """Mean logits of a batch, float64 scalars on the device of the embeddings.

    Attributes:
        positive: mean over matching pairs.
        negative: mean over all others; NaN when there are none.
    """

    positive: Tensor
    negative: Tensor


@torch.no_grad()
def pair_logits(
    image_embeds: Tensor,
    text_embeds: Tensor,
    log_scale: Tensor,
    bias: Tensor | None = None,
    match_ids: Tensor | None = None,
) -> PairLogits:
    """Mean logit ``exp(t') x.y + b`` of positives and of negatives, in O(b d) time and memory.

    The sum over all b * b cosines is the dot product of the two column sums; a group of equal ids contributes its own
    such product to the positives, and the negatives are the rest. Sums over the batch are kept in float64, since
    the rest is a difference of large numbers.

    Args:
        image_embeds: ``[b, d]``, unit length.
        text_embeds: ``[b, d]``; row i describes image i.
        log_scale: t', one element.
        bias: b, one element; ``None`` counts as 0 (softmax loss).
        match_ids: int64 ``[b]``; rows with equal ids are positives of each other. Default: only the diagonal.

    Returns:
        Means for the b rows handed over; with several processes, those of the local block.

    Raises:
        ValueError: image and text embeddings of different shapes.
    """
    if image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"Expected one text for each image, got {list(image_embeds.shape)} and {list(text_embeds.shape)}. "
            "In evaluation with several captions use retrieval_metrics."
        )
    dtype = torch.float64 if image_embeds.dtype == torch.float64 else torch.float32
    image, text = image_embeds.to(dtype), text_embeds.to(dtype)
    positives, num_positives = _positive_cosines(image, text, match_ids)
    everything = image.sum(0, dtype=torch.float64) @ text.sum(0, dtype=torch.float64)
    num_negatives = len(image) ** 2 - num_positives
    scale = log_scale.double().exp().reshape(())
    offset = bias.double().reshape(()) if bias is not None else torch.zeros_like(scale)
    return PairLogits(
        positive=scale * positives / num_positives + offset,
        negative=scale * (everything - positives) / num_negatives + offset,
    )


def _positive_cosines(image: Tensor, text: Tensor, match_ids: Tensor | None) -> tuple[Tensor, Tensor]:
    """Sum of the cosines of all positives, and their number, both scalars."""
    if match_ids is None:
        return (image * text).sum(dtype=torch.float64), torch.full((), len(image), device=image.device)
    group = torch.unique(match_ids, return_inverse=True)[1]
    image_sums = torch.zeros_like(image).index_add_(0, group, image)
    text_sums = torch.zeros_like(text).index_add_(0, group, text)
    sizes = torch.zeros_like(group).index_add_(0, group, torch.ones_like(group))
    return (image_sums * text_sums).sum(dtype=torch.float64), (sizes * sizes).sum()
