"""The softmax loss by two kernels: log-sum-exps of rows and columns first, and derivatives out of the same products.

The numbers are those of :mod:`siglightning.losses.eager_softmax` up to rounding. Within the kernels logits and
log-sum-exps are in units of log 2. A block of the first kernel leaves one log-sum-exp for each of its rows and each of
its columns, which torch puts together; no logit reaches memory.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

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

LOG2E = tl.constexpr(1.4426950408889634)
LN2 = tl.constexpr(0.6931471805599453)
LEFT_OUT = tl.constexpr(-1e30)  # for a logit: its exponential is exactly zero


class FusedSoftmax:
    """As :class:`~siglightning.losses.eager_softmax.EagerSoftmax`, with a kernel for each of the two passes.

    Memory beyond inputs and gradients: one tile in two bytes a pair (fp32 inputs: four), for bf16 inputs fp16 copies
    of a tile's images and of one block of texts, and a few numbers for each row of a tile.

    Args:
        images: ``[b, d]`` of this rank, fp16, bf16 or fp32.
        scale: ``exp(t')``, fp32.
        chunk_size: side of a tile in rows; ``None`` for tiles of about equal size.
        need_gradients: whether gradients are wanted.
        blocks: how programs cut a tile; ``None`` for what suits the device.
    """

    def __init__(
        self, images: Tensor, scale: Tensor, chunk_size: int | None, need_gradients: bool, blocks: Blocks | None = None
    ) -> None:
        blocks = blocks or default_blocks(images, with_ids=True)
        self.scale, self._side = scale, balanced_side(len(images), chunk_size)
        self._tiles = FusedTiles(images, self._side, blocks, need_gradients)
        self._sums = images.new_zeros(blocks.programs(self._side, self._side), 2, dtype=torch.float64)
        self.row_lse = images.new_full((len(images),), -math.inf, dtype=torch.float32)
        self.image = torch.zeros_like(images, dtype=torch.float32) if need_gradients else None

    @property
    def positives(self) -> Tensor:
        """Sum of the logits of pairs, fp64."""
        return self._sums[:, 0].sum()

    def add_log_sum_exps(self, texts: Tensor, is_own: bool) -> Tensor:
        """Add one block of texts ``[m, d]`` to :attr:`row_lse`; returns the block's own, by column, ``[m]``."""
        operand, blocks, side = self._tiles.operand(texts), self._tiles.blocks, self._side
        column_lse = self.row_lse.new_full((len(texts),), -math.inf)
        by_row = self.row_lse.new_empty(-(-side // blocks.columns), side)
        by_column = self.row_lse.new_empty(-(-side // blocks.rows), side)
        for rows, columns in self._tiles.places(len(texts)):
            height, width = rows.stop - rows.start, columns.stop - columns.start
            arguments = (self.scale, self._sums, by_row, by_column, side, pair_shift(rows, columns, is_own))
            self._tiles.launch(log_sum_exp_tile, operand, rows, columns, *arguments)
            parts = by_row[: -(-width // blocks.columns), :height], by_column[: -(-height // blocks.rows), :width]
            self.row_lse[rows] = torch.logaddexp(self.row_lse[rows], parts[0].logsumexp(0))
            column_lse[columns] = torch.logaddexp(column_lse[columns], parts[1].logsumexp(0))
        return column_lse

    def add_gradients(self, texts: Tensor, column_lse: Tensor, gradient: Tensor, is_own: bool) -> None:
        """Add derivatives times texts to :attr:`image`, and derivatives times images to ``gradient [m, d]``."""
        operand = self._tiles.operand(texts)
        arguments = (self.scale, self._sums, self.row_lse, column_lse)
        for rows, columns in self._tiles.places(len(texts)):
            self._tiles.launch(softmax_tile, operand, rows, columns, *arguments, pair_shift(rows, columns, is_own))
            self._tiles.add_products(operand, rows, columns, self.image, gradient)

    def log_scale_gradient(self) -> Tensor:
        """Sum of each derivative times its logit, fp64; once all blocks are in."""
        return self._sums[:, 1].sum()


@triton.jit(do_not_specialize=["row", "column", "num_rows", "num_columns", "shift", "stride"])
def log_sum_exp_tile(
    images,
    texts,
    tile,
    scale,
    sums,
    by_row,
    by_column,
    stride,
    shift,
    row,
    column,
    num_rows,
    num_columns,
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
    """One block: its log-sum-exps in nats, into ``by_row [blocks across, stride]`` and ``by_column [down, stride]``.

    The logits of pairs are added to this program's first place in ``sums``.
    """
    top, left = block_place(num_rows, num_columns, ROWS, COLUMNS, GROUP)
    cosines = accumulate_products(
        images, texts, row + top, column + left, WIDTH, ROWS, COLUMNS, DEPTH, PRECISION, UPCAST
    )
    slope = tl.load(scale) * LOG2E
    rows = top + tl.arange(0, ROWS)
    highest = tl.full((ROWS,), LEFT_OUT, tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    positives = tl.zeros((ROWS,), tl.float32)
    first, second = halves(cosines)
    quarters = halves(first) + halves(second)
    WIDE: tl.constexpr = COLUMNS // 4
    for part in tl.static_range(4):
        columns = left + part * WIDE + tl.arange(0, WIDE)
        is_inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
        logits = tl.where(is_inside, quarters[part] * slope, LEFT_OUT)
        is_pair = (rows[:, None] + shift == columns[None, :]) & is_inside
        positives += tl.sum(tl.where(is_pair, logits, 0.0), axis=1)
        peak = tl.maximum(highest, tl.max(logits, axis=1))
        total = total * tl.exp2(highest - peak) + tl.sum(tl.exp2(logits - peak[:, None]), axis=1)
        highest = peak
        column_peak = tl.max(logits, axis=0)
        column_total = tl.sum(tl.exp2(logits - column_peak[None, :]), axis=0)
        place = by_column + top // ROWS * stride + columns
        tl.store(place, (column_peak + tl.log2(column_total)) * LN2, mask=columns < num_columns)
    tl.store(by_row + left // COLUMNS * stride + rows, (highest + tl.log2(total)) * LN2, mask=rows < num_rows)
    place = sums + 2 * tl.program_id(0)
    tl.store(place, tl.load(place) + (tl.sum(positives) * LN2).to(tl.float64))


@triton.jit(do_not_specialize=["row", "column", "num_rows", "num_columns", "shift"])
def softmax_tile(
    images,
    texts,
    tile,
    scale,
    sums,
    row_lse,
    column_lse,
    shift,
    row,
    column,
    num_rows,
    num_columns,
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
    """One block: its derivatives into the tile, and their products with the logits to this program's second place."""
    top, left = block_place(num_rows, num_columns, ROWS, COLUMNS, GROUP)
    cosines = accumulate_products(
        images, texts, row + top, column + left, WIDTH, ROWS, COLUMNS, DEPTH, PRECISION, UPCAST
    )
    slope = tl.load(scale) * LOG2E
    rows = top + tl.arange(0, ROWS)
    whole_rows = tl.load(row_lse + row + rows, mask=rows < num_rows, other=0.0) * LOG2E
    by_logit = tl.zeros((ROWS,), tl.float32)
    first, second = halves(cosines)
    quarters = halves(first) + halves(second)
    WIDE: tl.constexpr = COLUMNS // 4
    for part in tl.static_range(4):
        columns = left + part * WIDE + tl.arange(0, WIDE)
        whole_columns = tl.load(column_lse + column + columns, mask=columns < num_columns, other=0.0) * LOG2E
        logits = quarters[part] * slope
        if (top + ROWS > num_rows) | (left + part * WIDE + WIDE > num_columns):
            is_inside = (rows[:, None] < num_rows) & (columns[None, :] < num_columns)
            logits = tl.where(is_inside, logits, LEFT_OUT)
        p = tl.exp2(logits - whole_rows[:, None]) + tl.exp2(logits - whole_columns[None, :])
        if (left + part * WIDE - top - shift < ROWS) & (top + shift - left - part * WIDE < WIDE):
            is_pair = (rows[:, None] + shift == columns[None, :]) & (rows[:, None] < num_rows)
            p = tl.where(is_pair, p - 2.0, p)
        by_logit += LN2 * tl.sum(p * logits, axis=1)
        tile.store([top, left + part * WIDE], (p * TILE_SCALE).to(tile.dtype))
    place = sums + 2 * tl.program_id(0) + 1
    tl.store(place, tl.load(place) + tl.sum(by_logit).to(tl.float64))
