"""A written model as another library computes with it."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor


class Outputs(NamedTuple):
    """What a model says of N pictures and M captions.

    Attributes:
        image: unit embeddings fp32 ``[N, d]``.
        text: unit embeddings fp32 ``[M, d]``.
        logits: fp32 ``[N, M]``, ``exp(t') x.y + b``.
    """

    image: Tensor
    text: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Reloaded:
    """A model read back from its folder, with the library's own preprocessing and tokenizer.

    Attributes:
        pixels: N pictures, uint8 ``[3, H, W]`` of any sizes, to what the image tower reads: fp32 ``[N, 3, S, S]``.
        tokens: M captions to what the text tower reads: int64 ``[M, L]``.
        outputs: both to :class:`Outputs`.
        pad_id: the id that fills up captions.
    """

    pixels: Callable[[Sequence[Tensor]], Tensor]
    tokens: Callable[[Sequence[str]], Tensor]
    outputs: Callable[[Tensor, Tensor], Outputs]
    pad_id: int
