"""The sigmoid loss as one kernel: logit, softplus, sigmoid, sums and derivative of a pair without leaving registers.

The numbers are those of :mod:`siglightning.losses.eager_sigmoid`, see there and in :mod:`siglightning.losses.sigmoid`;
what differs is rounding. With ``s = -z * logit`` and ``e = exp(-|s|)``, which is never above 1::

    sigmoid(s)  = 1 / (1 + e) where s >= 0, else e / (1 + e)
    softplus(s) = max(s, 0) + log1p(e)

``log1p`` is a polynomial that keeps the relative precision of a negative's term of 4.5e-5, which ``log(1 + e)`` would
round away, and ``1 / (1 + e)`` is the square of a reciprocal square root, for which the hardware has an instruction.
Logits are kept in units of log 2, since it has ``2**x`` and not ``exp``.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from siglightning.losses.inputs import Ranks
from siglightning.losses.pairs import Pairs
from siglightning.losses.sums import Sums
from siglightning.losses.triton_tiles import (
    Blocks,
    FusedTiles,
    accumulate_products,
    balanced_side,
    block_place,
    default_blocks,
    halves,
    pair_shift,
)

_MATCHES = {"none": 0, "positive": 1, "ignore": 2}

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LEFT_OUT = tl.constexpr(-1e30)  # for s: its softplus and sigmoid are exactly zero, and so is their product with s


class FusedBlocks:
    """Adds blocks tile by tile, each by one launch of the kernel and one product for either gradient.

    Everything is queued on the current stream; nothing waits for the device, and a CUDA graph can record it.

    Memory beyond inputs and gradients: one tile in two bytes a pair (fp32 inputs: four), and for bf16 inputs fp16
    copies of a tile's images and of one block of texts.

    Args:
        pairs: of this rank, with images as they came.
        ranks: who shares the batch.
        need_image: whether gradients of images are wanted.
        need_text: whether those of texts are.
        blocks: how programs cut a tile; ``None`` for what suits the device.
    """

    def __init__(
        self, pairs: Pairs, ranks: Ranks, need_image: bool, need_text: bool, blocks: Blocks | None = None
    ) -> None:
        self.pairs, self.rank, images = pairs, ranks.ring.rank, pairs.images
        side = balanced_side(max(ranks.sizes), pairs.side)
        blocks = blocks or default_blocks(images, with_ids=pairs.match_ids is not None)
        self.tiles = FusedTiles(images, side, blocks, need_image or need_text)
        self.match = _MATCHES["none" if pairs.match_ids is None else pairs.match]
        self._image = torch.zeros_like(images, dtype=torch.float32) if need_image else None
        # One place a program, the same for every tile: launches follow one another, so none writes into another's.
        self._sums = images.new_zeros(blocks.programs(side, side), 3, dtype=torch.float64)

    def add(self, owner: int, texts: Tensor, text_ids: Tensor | None, gradient: Tensor | None) -> None:
        """See :class:`~siglightning.losses.sums.Blocks`."""
        operand, pairs = self.tiles.operand(texts), self.pairs
        arguments = (pairs.match_ids, text_ids, pairs.scale, pairs.bias, self._sums)
        for rows, columns in self.tiles.places(len(texts)):
            shift = pair_shift(rows, columns, owner == self.rank)
            self.tiles.launch(sigmoid_tile, operand, rows, columns, *arguments, shift, MATCH=self.match)
            self.tiles.add_products(operand, rows, columns, self._image, gradient)

    def sums(self) -> Sums:
        """See :class:`~siglightning.losses.sums.Blocks`; the kernel sums derivatives times cosines."""
        loss, derivatives, by_cosine = self._sums.sum(0)
        return Sums(loss, derivatives, self._image, by_cosine * self.pairs.scale)


@triton.jit
def _log1p(e):
    """``log(1 + e)`` for e in [0, 1], to 3.3e-7 of it: the polynomial of degree 7 with the least relative error."""
    p = -0.008539184927940369
    p = p * e + 0.04408954828977585
    p = p * e - 0.10768159478902817
    p = p * e + 0.17745232582092285
    p = p * e - 0.24495460093021393
    p = p * e + 0.33275479078292847
    p = p * e - 0.4999740421772003
    p = p * e + 0.9999998211860657
    return p * e


@triton.jit(do_not_specialize=["row", "column", "num_rows", "num_columns", "shift"])
def sigmoid_tile(
    images,
    texts,
    tile,
    image_ids,
    text_ids,
    scale,
    bias,
    sums,
    shift,
    row,
    column,
    num_rows,
    num_columns,
    MATCH: tl.constexpr,
    WIDTH: tl.constexpr,
    TILE_SCALE: tl.constexpr,
    WRITE: tl.constexpr,
    UPCAST: tl.constexpr,
    PRECISION: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One block of a tile: its sums are added to this program's place, its derivatives written into the tile.

    The tile holds images from ``row`` on and texts from ``column`` on; a pair is where the number of the text within
    the tile is that of the image plus ``shift``.
    """
    top, left = block_place(num_rows, num_columns, ROWS, COLUMNS, GROUP)
    cosines = accumulate_products(
        images, texts, row + top, column + left, WIDTH, ROWS, COLUMNS, DEPTH, PRECISION, UPCAST
    )
    slope, offset = tl.load(scale) * LOG2E, tl.load(bias) * LOG2E
    rows = top + tl.arange(0, ROWS)
    loss = tl.zeros((ROWS,), tl.float32)
    derivatives = tl.zeros((ROWS,), tl.float32)
    by_cosine = tl.zeros((ROWS,), tl.float32)
    first, second = halves(cosines)
    quarters = halves(first) + halves(second)
    WIDE: tl.constexpr = COLUMNS // 4
    for part in tl.static_range(4):
        columns = left + part * WIDE + tl.arange(0, WIDE)
        s = quarters[part] * slope + offset
        is_near = (left + part * WIDE - top - shift < ROWS) & (top + shift - left - part * WIDE < WIDE)
        is_pair = rows[:, None] + shift == columns[None, :]
        if MATCH == 0:
            is_positive = is_pair
            if is_near:
                s = tl.where(is_pair, -s, s)
        else:
            x_ids = tl.load(image_ids + row + rows, mask=rows < num_rows, other=0)
            y_ids = tl.load(text_ids + column + columns, mask=columns < num_columns, other=0)
            is_match = x_ids[:, None] == y_ids[None, :]
            is_positive = is_match if MATCH == 1 else is_pair
            s = tl.where(is_positive, -s, tl.where(is_match, LEFT_OUT, s))
        if (top + ROWS > num_rows) | (left + part * WIDE + WIDE > num_columns):
            is_inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
            s = tl.where(is_inside, s, LEFT_OUT)
        e = tl.exp2(-tl.abs(s))
        root = tl.rsqrt(1.0 + e)
        p = tl.where(s < 0, e * root * root, root * root)
        loss += tl.sum(_log1p(e), axis=1) + LN2 * tl.sum(tl.maximum(s, 0.0), axis=1)
        if WRITE:
            if MATCH != 0 or is_near:
                p = tl.where(is_positive, -p, p)
            derivatives += tl.sum(p, axis=1)
            by_cosine += tl.sum(p * quarters[part], axis=1)
            tile.store([top, left + part * WIDE], (p * TILE_SCALE).to(tile.dtype))
    place = sums + 3 * tl.program_id(0)
    tl.store(place, tl.load(place) + tl.sum(loss).to(tl.float64))
    if WRITE:
        tl.store(place + 1, tl.load(place + 1) + tl.sum(derivatives).to(tl.float64))
        tl.store(place + 2, tl.load(place + 2) + tl.sum(by_cosine).to(tl.float64))
