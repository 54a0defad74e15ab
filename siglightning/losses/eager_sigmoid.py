"""Tiles of the sigmoid loss by torch's own operations: any device, any dtype, and masks of negatives."""

import math

import torch
from torch import Tensor

from siglightning.losses.negatives import Mask
from siglightning.losses.pairs import Pairs, Tile
from siglightning.losses.sums import Sums

_FOLDS = 3  # 2**3 terms share one logarithm: see _softplus_sum


class EagerBlocks:
    """Forms each tile of logits in memory and overwrites it, in fp32 (fp64 for fp64 inputs).

    Args:
        pairs: of this rank.
        rank: of this process in the ring.
        need_image: whether gradients of images are wanted.
        mask: which negatives count; ``None`` for all.
    """

    def __init__(self, pairs: Pairs, rank: int, need_image: bool, mask: Mask | None) -> None:
        self.pairs, self.rank, self.mask = pairs, rank, mask
        self._sums = Sums.zeros(pairs.images, pairs.images.dtype, need_image)

    def add(self, owner: int, texts: Tensor, text_ids: Tensor | None, gradient: Tensor | None) -> None:
        """See :class:`~siglightning.losses.sums.Blocks`."""
        y = texts.to(self.pairs.images.dtype)
        for tile in self.pairs.tiles(y, text_ids, owner == self.rank):
            self._add_tile(tile, owner, y, gradient)

    def sums(self) -> Sums:
        """See :class:`~siglightning.losses.sums.Blocks`."""
        return self._sums

    def _add_tile(self, tile: Tile, owner: int, y: Tensor, gradient: Tensor | None) -> None:
        sums, s, p = self._sums, tile.logits, tile.scratch
        tied = self.mask(tile, owner) if self.mask is not None else None
        if tile.positives is not None:
            s[tile.positives] *= -1
        if tile.ignored is not None:
            s[tile.ignored] = -math.inf  # softplus and sigmoid of it are exactly zero
        torch.sigmoid(s, out=p)
        sums.loss += _softplus_sum(s, p)
        if tied is not None:
            sums.loss += tied.loss()
            tied.fill(p)
        if tile.positives is not None:
            p[tile.positives] *= -1
        sums.derivatives += _sum(p)
        if sums.image is not None:
            sums.image[tile.rows].addmm_(p, y[tile.columns])
        if gradient is not None:
            gradient[tile.columns].addmm_(p.T, self.pairs.images[tile.rows])


def _softplus_sum(s: Tensor, p: Tensor) -> Tensor:
    """Return ``sum(softplus(s))`` in fp64, given ``p = sigmoid(s)``; overwrites ``s``.

    ``softplus(s) = relu(s) - log(1 - q)`` with ``q = min(p, 1 - p)``, and logarithms of a product add up, so eight
    terms share one ``log1p``, which costs as much as eight sigmoids. The product of ``1 - q_k`` is carried as its
    complement, by ``(1 - a)(1 - b) = 1 - (a + b (1 - a))``: sums of small positive numbers, which keep the relative
    precision of ``q = 1e-5`` where ``1 - q`` would round it away. Worst case: eight terms at s = 0, a complement of
    1 - 2**-8, where rounding by 2**-25 costs 8e-6 of their sum of 5.5.
    """
    total = _sum(s.clamp_min_(0))
    one = p.new_ones(())
    q = torch.minimum(p, torch.sub(one, p, out=s), out=s).view(-1)
    whole = len(q) >> _FOLDS << _FOLDS
    folded, rest = q[:whole], q[whole:]
    for _ in range(_FOLDS):
        left, right = folded.view(2, -1)
        folded = left.lerp_(one, right)  # left + right (1 - left)
    return total - torch.log1p(-folded).sum(dtype=torch.float64) - torch.log1p(-rest).sum(dtype=torch.float64)


def _sum(tile: Tensor) -> Tensor:
    """Sum in fp64 of rows summed in their own dtype: a tenth of the time of converting every entry.

    A row has at most as many terms as a tile, added pairwise, so in fp32 it is right to some 1e-7 of its absolute sum.
    """
    return tile.sum(dim=1).sum(dtype=torch.float64)
