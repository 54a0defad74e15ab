"""Tiles of the softmax loss by torch's own operations: any device, any dtype."""

import math

import torch
from torch import Tensor

from siglightning.losses.inputs import DEFAULT_CHUNK_SIZE, compute_dtype, tiles


class EagerSoftmax:
    """Forms each tile of logits in memory, in fp32 (fp64 for fp64 inputs).

    Args:
        images: ``[b, d]`` of this rank.
        scale: ``exp(t')``.
        side: of a tile in rows; ``None`` for what is usual.
        need_gradients: whether gradients are wanted.

    Attributes:
        row_lse: ``[b]``, log-sum-exp of each row over the blocks so far.
        positives: sum of the logits of pairs, fp64.
        image: ``[b, d]``, derivatives times texts; ``None`` where no gradients are wanted.
        scale: as given.
    """

    def __init__(self, images: Tensor, scale: Tensor, side: int | None, need_gradients: bool) -> None:
        self._x, self.scale, self._side = images.to(compute_dtype(images.dtype)), scale, side or DEFAULT_CHUNK_SIZE
        self.row_lse = self._x.new_full((len(images),), -math.inf)
        self.positives = images.new_zeros((), dtype=torch.float64)
        self.image = torch.zeros_like(self._x) if need_gradients else None

    def add_log_sum_exps(self, texts: Tensor, is_own: bool) -> Tensor:
        """Add one block of texts ``[m, d]`` to :attr:`row_lse`; returns the block's own, by column, ``[m]``."""
        x, y = self._x, texts.to(self._x.dtype)
        column_lse = y.new_full((len(y),), -math.inf)
        for rows, columns in tiles(len(x), len(y), self._side):
            logits = (x[rows] @ y[columns].T).mul_(self.scale)
            self.row_lse[rows] = torch.logaddexp(self.row_lse[rows], logits.logsumexp(1))
            column_lse[columns] = torch.logaddexp(column_lse[columns], logits.logsumexp(0))
        if is_own:
            self.positives += (torch.einsum("id,id->i", x, y) * self.scale).sum(dtype=torch.float64)
        return column_lse

    def add_gradients(self, texts: Tensor, column_lse: Tensor, gradient: Tensor, is_own: bool) -> None:
        """Add derivatives times texts to :attr:`image`, and derivatives times images to ``gradient [m, d]``.

        A derivative is ``row softmax + column softmax``, on pairs less 2; the log-sum-exps are whole by now.
        """
        assert self.image is not None
        x, y = self._x, texts.to(self._x.dtype)
        if is_own:
            self.image.sub_(y, alpha=2)
            gradient.sub_(x, alpha=2)
        for rows, columns in tiles(len(x), len(y), self._side):
            logits = (x[rows] @ y[columns].T).mul_(self.scale)
            p = (logits - self.row_lse[rows, None]).exp_()
            p += logits.sub_(column_lse[columns]).exp_()
            self.image[rows].addmm_(p, y[columns])
            gradient[columns].addmm_(p.T, x[rows])

    def log_scale_gradient(self) -> Tensor:
        """Sum of each derivative times its logit, fp64; once all blocks are in."""
        assert self.image is not None
        return (torch.einsum("id,id->i", self._x, self.image) * self.scale).sum(dtype=torch.float64)
