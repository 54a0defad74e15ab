"""CLIP's softmax loss with the memory of a tile: the baseline that the sigmoid loss is compared with.

Specification (Radford et al. 2021; SigLIP paper, section 3.1)::

    logits = exp(t') * x @ y.T
    loss   = -sum(log_softmax(logits, rows).diagonal() + log_softmax(logits, columns).diagonal()) / (2 * b)

Each softmax must see its whole row or column before any gradient can be formed, hence two passes: the first streams
the log-sum-exp of every row and column, the second forms the logits again and with them the gradients.

On several ranks both passes go over the texts of all ranks: in the first each block of texts travels with the
log-sum-exp that the ranks have added up for its columns, in the second with those, now whole, and with its gradient.
Scaled as the sigmoid loss: the mean over ranks is the loss, and DistributedDataParallel makes the gradients exact.
"""

import math
from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from siglightning.distributed.exchange import Comm
from siglightning.distributed.ring import Ring
from siglightning.distributed.watch import agree
from siglightning.losses.backends import Backend, chosen_backend
from siglightning.losses.inputs import (
    DEFAULT_CHUNK_SIZE,
    Ranks,
    check_chunk_size,
    check_embeddings,
    check_scalar,
    checksum,
    compute_dtype,
    shared_sizes,
    tiles,
)
from siglightning.losses.known import with_gradients


def softmax_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    log_scale: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    sizes: Sequence[int] | None = None,
    comm: Comm = "ring",
    chunk_size: int | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Mean of the image-to-text and text-to-image cross entropies (SigLIP paper, section 3.1).

    Args:
        image_embeds: ``[b, d]``, unit rows, fp16, bf16, fp32 or fp64; row i and row i of ``text_embeds`` are a pair.
            With a group, this rank's part of the batch.
        text_embeds: ``[b, d]``, unit rows, the same dtype and device.
        log_scale: one element, t'.
        group: process group that shares the batch, every rank of which must call alike; ``None``: this process alone.
        sizes: local batch of every rank, where they differ; ``None``: all have b.
        comm: ``"ring"``, or ``"gather"`` (fewer and larger messages, D times the memory for texts; equal numbers).
        chunk_size: side of a tile in rows. Memory beyond inputs and gradients is about two tiles.
        backend: ``"eager"``; ``"auto"`` chooses it.

    Returns:
        Scalar in nats, fp32 (fp64 for fp64 inputs), mean over the 2 b rows and columns. ``log(b)`` when nothing is
        learnt yet. With a group, this rank's part; the loss is the mean over ranks.

    Raises:
        ValueError: shapes, dtypes, devices or options do not fit together, or another rank calls differently.
        RingError: a rank does not answer; the message names it.

    Memory and communication:
        As :func:`siglightning.losses.sigmoid_loss`, with the logits formed twice: four matrix products a tile, and
        two rounds: texts with one number a text in the first, with one number and a gradient a text in the second.
    """
    check_embeddings(image_embeds, text_embeds)
    check_scalar("log_scale", log_scale)
    ring = Ring.of(group)
    all_sizes = shared_sizes(ring, sizes, comm, len(image_embeds))
    check_chunk_size(chunk_size)
    chosen_backend(backend, image_embeds)
    side = chunk_size or DEFAULT_CHUNK_SIZE
    inputs = (image_embeds, text_embeds, log_scale)
    with_grad = torch.is_grad_enabled() and any(value.requires_grad for value in inputs)
    call = {
        "kind": "softmax_loss with gradients" if with_grad else "softmax_loss",
        "pairs": len(image_embeds) if sizes is None else "as in sizes",
        "width": image_embeds.shape[1],
        "dtype": str(image_embeds.dtype),
        "comm": comm,
    }
    agree(group, call, image_embeds.device, once={"sizes": checksum(sizes)})
    with torch.no_grad(), torch.autocast(image_embeds.device.type, enabled=False):
        loss, gradients = _loss_and_gradients(*inputs, Ranks(ring, all_sizes, comm), side, with_grad)
    return with_gradients(loss, list(zip(inputs, gradients, strict=True)))


def _loss_and_gradients(
    image_embeds: Tensor, text_embeds: Tensor, log_scale: Tensor, ranks: Ranks, side: int, with_grad: bool
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The loss and its gradients by images, texts and t', in two trips over all ranks' texts."""
    dtype = compute_dtype(image_embeds.dtype)
    x, own_texts, scale = image_embeds.to(dtype), text_embeds.detach(), log_scale.to(dtype).exp().reshape(())
    row_lse, column_lse = _log_sum_exps(x, own_texts, scale, ranks, side)
    positives = torch.einsum("id,id->i", x, own_texts.to(dtype)) * scale
    terms = (row_lse + column_lse - 2 * positives).sum(dtype=torch.float64)
    loss = (terms * (ranks.share / 2)).to(dtype)
    if not with_grad:
        return loss, (None,) * 3
    return loss, _gradients(x, own_texts, scale, row_lse, column_lse, ranks, side)


def _log_sum_exps(x: Tensor, own_texts: Tensor, scale: Tensor, ranks: Ranks, side: int) -> tuple[Tensor, Tensor]:
    """Return the log-sum-exp of each own row and each own column of all logits, both ``[b]``."""
    row_lse = x.new_full((len(x),), -math.inf)
    exchange = ranks.exchange(torch.logaddexp)
    for _, (texts,) in exchange.blocks((own_texts,)):
        y = texts.to(x.dtype)
        column_lse = y.new_full((len(y),), -math.inf)
        for rows, columns in tiles(len(x), len(y), side):
            logits = (x[rows] @ y[columns].T).mul_(scale)
            row_lse[rows] = torch.logaddexp(row_lse[rows], logits.logsumexp(1))
            column_lse[columns] = torch.logaddexp(column_lse[columns], logits.logsumexp(0))
        exchange.hand_on(column_lse)
    return row_lse, exchange.home()


def _gradients(
    x: Tensor, own_texts: Tensor, scale: Tensor, row_lse: Tensor, column_lse: Tensor, ranks: Ranks, side: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of images, texts and t'. By a logit: ``(row softmax + column softmax - 2 * pair) / 2b``."""
    gradient_x = -2 * own_texts.to(x.dtype)  # the pairs; both softmaxes are added tile by tile
    exchange = ranks.exchange()
    for owner, (texts, lse) in exchange.blocks((own_texts, column_lse)):
        y = texts.to(x.dtype)
        gradient_y = exchange.zeros_like(y, y.dtype)
        if owner == ranks.ring.rank:
            gradient_y.sub_(x, alpha=2)
        for rows, columns in tiles(len(x), len(y), side):
            logits = (x[rows] @ y[columns].T).mul_(scale)
            p = (logits - row_lse[rows, None]).exp_()
            p += logits.sub_(lse[columns]).exp_()
            gradient_x[rows].addmm_(p, y[columns])
            gradient_y[columns].addmm_(p.T, x[rows])
        exchange.hand_on(gradient_y)
    gradient_y = exchange.home()
    factor = scale * (ranks.share / 2)
    gradient_x *= factor
    gradient_y *= factor
    return gradient_x, gradient_y, torch.einsum("id,id->i", x, gradient_x).sum(dtype=torch.float64)
