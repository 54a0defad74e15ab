"""This rank's images with the texts of all ranks, tile by tile: the logits of a tile and which of its pairs match.

Whatever goes over the pairs goes over these tiles. A loss that needs several trips (to choose negatives, and then to
count them) so meets the same matrix products of the same shapes each time, and with them the same logits to the bit.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from siglightning.distributed.exchange import Exchange
from siglightning.distributed.ring import Block
from siglightning.losses.inputs import DEFAULT_CHUNK_SIZE, compute_dtype, tiles

Match = Literal["positive", "ignore"]


class Index(NamedTuple):
    """Positions inside one tile: row and column numbers."""

    rows: Tensor
    columns: Tensor


class Tile(NamedTuple):
    """A part of the logits between this rank's images and one block of texts; good until the next is asked for.

    Attributes:
        rows: which of the rank's images.
        columns: which of the block's texts.
        logits: ``[rows, columns]``, to be overwritten.
        scratch: uninitialised, of the shape and dtype of ``logits``, to be written.
        positives: pairs that match; ``None`` for none.
        ignored: pairs that are neither positives nor negatives; ``None`` for none.
    """

    rows: slice
    columns: slice
    logits: Tensor
    scratch: Tensor
    positives: Index | None
    ignored: Index | None


@dataclass(frozen=True)
class Pairs:
    """What the tiles are made of.

    Attributes:
        images: ``[b, d]`` of this rank, in the dtype of the arithmetic, or for a kernel as they came.
        texts: ``[b, d]`` of this rank, in the dtype in which they travel.
        scale: ``exp(t')``, a scalar in the dtype of the arithmetic.
        bias: b, likewise.
        match_ids: int64 ``[b]``; rows with equal ids match. ``None``: only row i matches row i.
        match: what a match off the diagonal is: another positive, or a pair to be left out.
        side: of a tile in rows; ``None`` leaves it to whoever forms the tiles.
    """

    images: Tensor
    texts: Tensor
    scale: Tensor
    bias: Tensor
    match_ids: Tensor | None
    match: Match
    side: int | None

    @classmethod
    def of(
        cls,
        image_embeds: Tensor,
        text_embeds: Tensor,
        log_scale: Tensor,
        bias: Tensor | None,
        match_ids: Tensor | None,
        match: Match,
        side: int | None,
        keep_dtype: bool = False,
    ) -> "Pairs":
        """From the arguments of a loss; with ``keep_dtype`` images stay as they are, without a copy."""
        dtype = compute_dtype(image_embeds.dtype)
        scale = log_scale.to(dtype).exp().reshape(())
        shift = scale.new_zeros(()) if bias is None else bias.to(dtype).reshape(())
        images = image_embeds.detach() if keep_dtype else image_embeds.to(dtype)
        ids = None if match_ids is None else match_ids.contiguous()  # ranks send them, kernels count on it
        return cls(images, text_embeds.detach(), scale, shift, ids, match, side)

    def blocks(self, exchange: Exchange) -> Iterator[tuple[int, Tensor, Tensor | None]]:
        """Yield ``(owner, texts, ids)`` for every rank, ``[m, d]`` and ``[m]``; they travel as ``exchange`` sends."""
        own: Block = (self.texts,) if self.match_ids is None else (self.texts, self.match_ids)
        for owner, (texts, *ids) in exchange.blocks(own):
            yield owner, texts, ids[0] if ids else None

    def tiles(self, texts: Tensor, text_ids: Tensor | None, is_own: bool) -> Iterator[Tile]:
        """Tiles of this rank's images with one block of texts, one after the other in the same two buffers."""
        x, y, side = self.images, texts.to(self.images.dtype), self.side or DEFAULT_CHUNK_SIZE
        buffers = [x.new_empty(min(side, len(x)) * min(side, len(y))) for _ in range(2)]
        for rows, columns in tiles(len(x), len(y), side):
            shape = (rows.stop - rows.start, columns.stop - columns.start)
            logits, scratch = (buffer[: shape[0] * shape[1]].view(shape) for buffer in buffers)
            torch.mm(x[rows], y[columns].T, out=logits)
            torch.addcmul(self.bias, logits, self.scale, out=logits)
            yield Tile(rows, columns, logits, scratch, *self._matches(rows, columns, text_ids, is_own))

    def _matches(
        self, rows: slice, columns: slice, text_ids: Tensor | None, is_own: bool
    ) -> tuple[Index | None, Index | None]:
        """Return ``(positives, ignored)``; without ids the own block's diagonal, and of other ranks' blocks nothing."""
        # Tiles have one side on both axes, so each holds its whole share of the diagonal or nothing of it.
        on_diagonal = is_own and rows.start == columns.start
        diagonal = torch.arange(rows.stop - rows.start if on_diagonal else 0, device=self.images.device)
        pairs = Index(diagonal, diagonal) if on_diagonal else None
        if self.match_ids is None or text_ids is None:
            return pairs, None
        equal = self.match_ids[rows, None] == text_ids[None, columns]
        if self.match == "positive":
            return Index(*equal.nonzero(as_tuple=True)), None
        equal[diagonal, diagonal] = False
        return pairs, Index(*equal.nonzero(as_tuple=True))
