"""What both losses ask of their arguments, checked before any arithmetic."""

import zlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, get_args

import torch
from torch import Tensor

from siglightning.distributed.exchange import Accumulators, Comm, Exchange, open_exchange
from siglightning.distributed.ring import Ring

DEFAULT_CHUNK_SIZE = 1024  # a 1024 x 1024 fp32 tile is 4 MiB: it stays in cache, and larger tiles measured no faster


class Ranks(NamedTuple):
    """Who shares the batch, and how.

    Attributes:
        ring: the ranks.
        sizes: local batch of every rank.
        comm: how blocks reach all ranks.
        accumulators: dtype in which gradients of texts travel.
    """

    ring: Ring
    sizes: Sequence[int]
    comm: Comm
    accumulators: Accumulators = "full"

    @property
    def share(self) -> float:
        """``D / |B|``: what a term counts, so that the mean over ranks is a mean over all pairs."""
        return self.ring.size / sum(self.sizes)

    def exchange(self, **options: Any) -> Exchange:
        """Start a trip over the blocks of all ranks, with ``options`` of :class:`Exchange`."""
        return open_exchange(self.comm, self.ring, self.sizes, **options)

    def gradient_exchange(self) -> Exchange:
        """Start a trip on which gradients of the texts come home."""
        return self.exchange(travels_as=torch.bfloat16 if self.accumulators == "bf16" else None)


def check_embeddings(image_embeds: Tensor, text_embeds: Tensor) -> None:
    """Raise ``ValueError`` unless both are float ``[b, d]`` with equal shapes, one dtype and one device."""
    if image_embeds.ndim != 2 or image_embeds.shape != text_embeds.shape:
        raise ValueError(
            "Expected image_embeds and text_embeds of one shape [b, d], got "
            f"{list(image_embeds.shape)} and {list(text_embeds.shape)}. Row i of each must be one pair."
        )
    if len(image_embeds) == 0:
        raise ValueError("Expected at least one pair, got an empty batch. Drop empty batches before the loss.")
    if not image_embeds.is_floating_point() or image_embeds.dtype != text_embeds.dtype:
        raise ValueError(
            "Expected image_embeds and text_embeds of one floating dtype, got "
            f"{image_embeds.dtype} and {text_embeds.dtype}. Cast one to the other's dtype."
        )
    if image_embeds.device != text_embeds.device:
        raise ValueError(
            f"Expected both embeddings on one device, got {image_embeds.device} and {text_embeds.device}. Move one."
        )


def check_scalar(name: str, value: Tensor, embeds: Tensor) -> None:
    """Raise ``ValueError`` unless ``value`` holds exactly one number, on the device of the embeddings."""
    if value.numel() != 1:
        raise ValueError(f"Expected {name} with one element, got shape {list(value.shape)}. Use one for all pairs.")
    check_device(name, value, embeds)


def check_device(name: str, value: Tensor, embeds: Tensor) -> None:
    """Raise ``ValueError`` unless ``value`` is on the device of the embeddings."""
    if value.device != embeds.device:
        raise ValueError(
            f"Expected {name} on {embeds.device} as the embeddings are, got {value.device}. Move it there."
        )


def shared_sizes(ring: Ring, sizes: Sequence[int] | None, comm: str, local_size: int) -> list[int]:
    """Return the local batch of every rank: ``sizes``, or the own one for all.

    Raises:
        ValueError: ``sizes`` does not fit the group or this rank's batch, or ``comm`` is unknown.
    """
    if comm not in ("ring", "gather"):
        raise ValueError(f"Expected comm to be 'ring' or 'gather', got {comm!r}.")
    if sizes is None:
        return [local_size] * ring.size
    if len(sizes) != ring.size or sizes[ring.rank] != local_size or min(sizes) < 1:
        raise ValueError(
            f"Expected sizes to hold the local batch of each of the {ring.size} ranks, at least 1, and {local_size} "
            f"for rank {ring.rank}, got {list(sizes)}. Gather the sizes, or leave them out where all are equal."
        )
    return list(sizes)


def checksum(sizes: Sequence[int] | None) -> int:
    """A number that stands for ``sizes`` where ranks compare their calls; 0 for none."""
    return 0 if sizes is None else zlib.crc32(repr(list(sizes)).encode())


def check_chunk_size(chunk_size: int | None) -> None:
    """Raise ``ValueError`` for tiles without a row."""
    if chunk_size is not None and chunk_size < 1:
        raise ValueError(f"Expected chunk_size of at least 1 row, got {chunk_size}.")


def check_accumulators(accumulators: str) -> None:
    """Raise ``ValueError`` for an unknown dtype of gradients under way."""
    if accumulators not in get_args(Accumulators):
        raise ValueError(f"Expected accumulators to be 'full' or 'bf16', got {accumulators!r}.")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the arithmetic: fp64 for fp64, fp32 for everything narrower.

    In bf16 a logit near -10 has steps of 1/16, larger than the differences that training is about.
    """
    return torch.float64 if dtype == torch.float64 else torch.float32


def tiles(num_rows: int, num_columns: int, side: int) -> Iterator[tuple[slice, slice]]:
    """Yield the row and column slices of square tiles that cover a matrix, ragged at its far edges."""
    for top in range(0, num_rows, side):
        for left in range(0, num_columns, side):
            yield slice(top, min(top + side, num_rows)), slice(left, min(left + side, num_columns))
