"""The limit: three matrix products by the vendor's library, which any exact gradient of all pairs needs.

Logits ``x @ y.T`` and both gradients, ``p @ y`` and ``p.T @ x``, in the dtype of the embeddings, into memory that is
there already: nothing else is done, not even a sigmoid. Where the whole matrix does not fit, or is slower, the products
are taken in tiles of so many rows and columns, one after the other in the same buffer. Which tile is best is tried on
the spot, with one stripe of rows each, and the fastest is the limit.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.pairs import Inputs

SIDES = (4096, 8192, 11_264, 16_384, 32_768)  # 11,264: the side of our own kernel's tiles
TRIES = 3


class Tile(NamedTuple):
    """Rows (images) and columns (texts) of the part of the matrix that is held at a time."""

    rows: int
    columns: int


def tiles_for(pairs: int, itemsize: int, free_bytes: int | None) -> list[Tile]:
    """Tiles to try: square ones, stripes over all texts, and the whole matrix, as far as they fit in half the memory.

    Half, because they share it with whatever the other contestants' runs have left in the allocator.
    """
    sides = [side for side in SIDES if side < pairs]
    listed = [*(Tile(side, side) for side in sides), *(Tile(side, pairs) for side in sides), Tile(pairs, pairs)]
    limit = None if free_bytes is None else free_bytes // 2
    return [tile for tile in listed if limit is None or tile.rows * tile.columns * itemsize <= limit] or listed[:1]


@torch.no_grad()
def three_products(images: Tensor, texts: Tensor, tile: Tile, rows: int | None = None) -> tuple[Tensor, Tensor]:
    """The products over all pairs, or over the first ``rows`` images; returns what stands for the gradients."""
    buffer = images.new_empty(tile.rows * tile.columns)
    of_images, of_texts = torch.empty_like(images), torch.empty_like(texts)
    for top in _slices(rows or len(images), tile.rows):
        for left in _slices(len(texts), tile.columns):
            x, y = images[top], texts[left]
            part = torch.mm(x, y.T, out=buffer[: len(x) * len(y)].view(len(x), len(y)))
            _add(of_images[top], part, y, is_first=left.start == 0)
            _add(of_texts[left], part.T, x, is_first=top.start == 0)
    return of_images, of_texts


def best_tile(clock: Clock, inputs: Sequence[Inputs], tiles: Sequence[Tile]) -> Tile:
    """The tile with the least seconds a row in one stripe of rows, the best of three tries each in turn."""
    seconds: dict[Tile, list[float]] = {tile: [] for tile in tiles}
    for attempt in range(TRIES + 1):
        for tile, found in seconds.items():
            batch = inputs[attempt % len(inputs)]
            spent = clock.seconds(lambda t=tile, b=batch: three_products(b.images, b.texts, t, rows=t.rows))
            if attempt:  # the first chooses kernels and fills the allocator
                found.append(spent / tile.rows)
    return min(seconds, key=lambda tile: min(seconds[tile]))


def product_flops(pairs: int, dim: int) -> int:
    """Floating-point operations of the three products; a multiplication and an addition count as two."""
    return 6 * pairs * pairs * dim


def _add(out: Tensor, left: Tensor, right: Tensor, is_first: bool) -> None:
    if is_first:
        torch.mm(left, right, out=out)
    else:
        out.addmm_(left, right)


def _slices(length: int, step: int) -> Iterator[slice]:
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))
