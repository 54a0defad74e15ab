"""What the tiles of the sigmoid loss add up to, whoever forms them."""

from dataclasses import dataclass
from typing import Protocol, Self

import torch
from torch import Tensor


@dataclass
class Sums:
    """Sums over this rank's images and the texts of all blocks so far, in terms of a derivative by a logit times b.

    Attributes:
        loss: of the terms, fp64.
        derivatives: by the logits, fp64.
        scaled: of each derivative times its logit less the bias, fp64, which is the gradient of t'; ``None`` where it
            is left to follow from a gradient of embeddings.
        image: ``[b, d]``, derivatives times texts, in the dtype of the arithmetic; ``None`` where it is not wanted.
    """

    loss: Tensor
    derivatives: Tensor
    image: Tensor | None
    scaled: Tensor | None = None

    @classmethod
    def zeros(cls, images: Tensor, dtype: torch.dtype, need_image: bool) -> Self:
        """Before the first block; ``images`` ``[b, d]`` lend shape and device."""
        zero = images.new_zeros((), dtype=torch.float64)
        return cls(zero, zero.clone(), torch.zeros_like(images, dtype=dtype) if need_image else None)


class Blocks(Protocol):
    """Adds blocks of texts to the sums of this rank's images."""

    def add(self, owner: int, texts: Tensor, text_ids: Tensor | None, gradient: Tensor | None) -> None:
        """Add one block.

        Args:
            owner: rank whose texts they are.
            texts: ``[m, d]``, as they travel.
            text_ids: int64 ``[m]``, their match ids.
            gradient: ``[m, d]`` in the dtype of the arithmetic, to which derivatives times images are added; ``None``
                where it is not wanted.
        """

    def sums(self) -> Sums:
        """What all blocks have added up to."""
