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

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor

from siglightning.distributed.exchange import Accumulators, Comm
from siglightning.distributed.ring import Ring
from siglightning.distributed.watch import agree
from siglightning.losses.backends import Backend, chosen_backend
from siglightning.losses.eager_softmax import EagerSoftmax
from siglightning.losses.inputs import (
    Ranks,
    check_accumulators,
    check_chunk_size,
    check_embeddings,
    check_scalar,
    checksum,
    compute_dtype,
    shared_sizes,
)
from siglightning.losses.known import with_gradients
from siglightning.losses.uncompiled import uncompiled

if TYPE_CHECKING:
    from siglightning.losses.triton_softmax import FusedSoftmax


@uncompiled
def softmax_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    log_scale: Tensor,
    *,
    group: dist.ProcessGroup | None = None,
    sizes: Sequence[int] | None = None,
    comm: Comm = "ring",
    accumulators: Accumulators = "full",
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
        accumulators: how gradients of texts travel, ``"full"`` or ``"bf16"``; see the sigmoid loss.
        chunk_size: side of a tile in rows. Eager, memory beyond inputs and gradients is about two tiles.
        backend: see :func:`siglightning.losses.sigmoid_loss`.

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
    check_scalar("log_scale", log_scale, image_embeds)
    check_accumulators(accumulators)
    ring = Ring.of(group)
    ranks = Ranks(ring, shared_sizes(ring, sizes, comm, len(image_embeds)), comm, accumulators)
    check_chunk_size(chunk_size)
    kind = chosen_backend(backend, image_embeds)
    inputs = (image_embeds, text_embeds, log_scale)
    with_grad = torch.is_grad_enabled() and any(value.requires_grad for value in inputs)
    call = {
        "kind": "softmax_loss with gradients" if with_grad else "softmax_loss",
        "pairs": len(image_embeds) if sizes is None else "as in sizes",
        "width": image_embeds.shape[1],
        "dtype": str(image_embeds.dtype),
        "comm": comm,
        "accumulators": accumulators,
    }
    agree(group, call, image_embeds.device, once={"sizes": checksum(sizes)})
    device_of = torch.cuda.device_of(image_embeds)  # type: ignore[no-untyped-call]  # kernels run on the current one
    with torch.no_grad(), torch.autocast(image_embeds.device.type, enabled=False), device_of:
        dtype = compute_dtype(image_embeds.dtype)
        scale = log_scale.to(dtype).exp().reshape(())
        blocks = _blocks_of(kind)(image_embeds, scale, chunk_size, with_grad)
        loss, gradients = _loss_and_gradients(blocks, text_embeds.detach(), ranks, dtype)
    return with_gradients(loss, list(zip(inputs, gradients, strict=True)))


def _blocks_of(backend: str) -> "type[EagerSoftmax] | type[FusedSoftmax]":
    if backend == "eager":
        return EagerSoftmax
    # Not before it is asked for: not every installation has Triton.
    from siglightning.losses.triton_softmax import FusedSoftmax

    return FusedSoftmax


def _loss_and_gradients(
    blocks: "EagerSoftmax | FusedSoftmax", own_texts: Tensor, ranks: Ranks, dtype: torch.dtype
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The loss and, where wanted, its gradients by images, texts and t', in two trips over all ranks' texts."""
    column_lse = _column_log_sum_exps(blocks, own_texts, ranks)
    terms = (blocks.row_lse + column_lse).sum(dtype=torch.float64) - 2 * blocks.positives
    loss = (terms * (ranks.share / 2)).to(dtype)
    return loss, (None,) * 3 if blocks.image is None else _gradients(blocks, own_texts, column_lse, ranks)


def _column_log_sum_exps(blocks: "EagerSoftmax | FusedSoftmax", own_texts: Tensor, ranks: Ranks) -> Tensor:
    """The log-sum-exp of each own column of all logits, ``[b]``; those of rows are left in ``blocks``."""
    exchange = ranks.exchange(combine=torch.logaddexp)
    for owner, (texts,) in exchange.blocks((own_texts,)):
        exchange.hand_on(blocks.add_log_sum_exps(texts, owner == ranks.ring.rank))
    return exchange.home()


def _gradients(
    blocks: "EagerSoftmax | FusedSoftmax", own_texts: Tensor, column_lse: Tensor, ranks: Ranks
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of images, texts and t'. By a logit: ``(row softmax + column softmax - 2 * pair) / 2b``."""
    assert blocks.image is not None
    exchange = ranks.gradient_exchange()
    for owner, (texts, lse) in exchange.blocks((own_texts, column_lse)):
        gradient = exchange.zeros_like(texts, blocks.image.dtype)
        blocks.add_gradients(texts, lse, gradient, owner == ranks.ring.rank)
        exchange.hand_on(gradient)
    text, log_scale = exchange.home().to(blocks.image.dtype), blocks.log_scale_gradient() * (ranks.share / 2)
    for gradient in (blocks.image, text):
        gradient *= blocks.scale * (ranks.share / 2)
    return blocks.image, text, log_scale
