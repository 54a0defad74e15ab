"""The pairwise sigmoid loss of SigLIP, its gradients formed tile by tile in the forward pass.

Specification (Zhai et al. 2023, arXiv:2303.15343, Algorithm 1; the sign of ``b`` in its printed equation is wrong)::

    logits = exp(t') * x @ y.T + b            # x: images [b, d], y: texts [b, d], unit rows
    z      = +1 on pairs, -1 elsewhere
    loss   = -sum(logsigmoid(z * logits)) / b

With ``s = -z * logits`` the loss is ``sum(softplus(s)) / b`` and its derivative by a logit is ``-z * sigmoid(s) / b``.
Autograd would keep several b x b matrices until backward. Here each tile of logits yields its share of every gradient
at once and is overwritten by the next: three matrix products a tile, and nothing of size b x b is ever held.

On several ranks each sees its images against the texts of all, block by block. A block of texts travels with the
gradient that the ranks have added up for it, so that after one round every gradient is home, and the backward pass has
nothing to communicate. Rank r returns ``D / |B|`` times the sum over its own rows, with D ranks and |B| pairs in all:
the mean over ranks is the loss above, and the averaging of DistributedDataParallel makes every gradient exact, those
of t' and b included.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from siglightning.distributed.exchange import Accumulators, Comm
from siglightning.distributed.ring import Ring
from siglightning.distributed.watch import agree
from siglightning.losses.backends import Backend, chosen_backend
from siglightning.losses.eager_sigmoid import EagerBlocks
from siglightning.losses.inputs import (
    Ranks,
    check_accumulators,
    check_chunk_size,
    check_device,
    check_embeddings,
    check_scalar,
    checksum,
    shared_sizes,
)
from siglightning.losses.known import with_gradients
from siglightning.losses.negatives import Negatives, open_mask
from siglightning.losses.pairs import Match, Pairs
from siglightning.losses.sums import Blocks, Sums
from siglightning.losses.uncompiled import uncompiled


@uncompiled
def sigmoid_loss(
    image_embeds: Tensor,
    text_embeds: Tensor,
    log_scale: Tensor,
    bias: Tensor | None = None,
    *,
    group: dist.ProcessGroup | None = None,
    match_ids: Tensor | None = None,
    match: Match = "positive",
    negatives: Negatives | None = None,
    step: int = 0,
    sizes: Sequence[int] | None = None,
    comm: Comm = "ring",
    accumulators: Accumulators = "full",
    chunk_size: int | None = None,
    backend: Backend = "auto",
) -> Tensor:
    """Sum of the sigmoid loss over the texts of all ranks, mean over the images (SigLIP paper, Algorithm 1).

    Args:
        image_embeds: ``[b, d]``, unit rows, fp16, bf16, fp32 or fp64; row i and row i of ``text_embeds`` are a pair.
            With a group, this rank's part of the batch.
        text_embeds: ``[b, d]``, unit rows, the same dtype and device.
        log_scale: one element, t' (its exponential multiplies the cosine).
        bias: one element, b; ``None`` for none.
        group: process group that shares the batch, every rank of which must call alike; ``None``: this process alone.
        match_ids: int64 ``[b]``; rows with equal ids match each other, on whichever ranks they are. ``None``: only
            row i matches row i.
        match: what a match off the diagonal is: another positive, or a pair to be left out.
        negatives: which negatives of the global batch count (:class:`Negatives`); ``None`` for all.
        step: of the training; a random mask depends on it and on the pair's place in the global batch, nothing else.
        sizes: local batch of every rank, where they differ; ``None``: all have b.
        comm: ``"ring"``, or ``"gather"`` (fewer and larger messages, D times the memory for texts; equal numbers).
        accumulators: how gradients of texts travel between ranks: in the dtype of the arithmetic (``"full"``), or
            rounded to ``"bf16"``, half the bytes of fp32. Every rank adds in full and rounds before it sends, so that
            D ranks round D times: each is off by at most 2**-8 of what had been added up by then.
        chunk_size: side of a tile in rows. Eager, memory beyond inputs and gradients is about four tiles.
        backend: ``"eager"``, ``"triton"`` or ``"auto"``, see :func:`siglightning.losses.backends.chosen_backend`. The
            kernel's tiles are larger (11,264 rows unless given), one of two bytes a pair is held, and for bf16 a copy
            of the texts in fp16. For fp16 and bf16 inputs it rounds each derivative by a logit to fp16 at a fixed
            scale: by 2**-11 of it, or by 1.8e-12 where that is more. For fp32 inputs it rounds as torch's products do.

    Returns:
        Scalar in nats, fp32 (fp64 for fp64 inputs). It grows with the number of negatives: at the start with
        t' = log 10 and b = -10 it is about ``10 + (b - 1) * 4.5e-5``. With a group, this rank's part; the loss is the
        mean over ranks.

    Raises:
        ValueError: shapes, dtypes, devices or options do not fit together, or another rank calls differently.
        RingError: a rank does not answer; the message names it.

    Memory and communication:
        All arithmetic in fp32 (fp64 for fp64 inputs), scalar sums in fp64. Kept for backward: one gradient the size
        of each input that needs one, in the dtype of the arithmetic, cast to the input's only after the incoming
        gradient has scaled it. Backward multiplies and communicates nothing. Differentiable once.

        Ring: each rank sends its texts (in their dtype) and match ids to the next rank, D - 1 times in all, and the
        gradients of the texts under way (fp32 or fp64, or as ``accumulators`` says), D times; all of it flies while a
        block is computed. Gather: one all-gather of texts and one of ids, one all-to-all of gradients. The first call
        gathers 512 bytes a rank.
        Masks need more of both: see :class:`Negatives`.
    """
    check_embeddings(image_embeds, text_embeds)
    check_scalar("log_scale", log_scale, image_embeds)
    if bias is not None:
        check_scalar("bias", bias, image_embeds)
    ring = Ring.of(group)
    check_accumulators(accumulators)
    ranks = Ranks(ring, shared_sizes(ring, sizes, comm, len(image_embeds)), comm, accumulators)
    _check_matches(match_ids, match, image_embeds)
    if negatives is not None and not isinstance(negatives, Negatives):
        raise ValueError(f"Expected negatives to be a siglightning.losses.Negatives or None, got {negatives!r}.")
    check_chunk_size(chunk_size)
    kind = chosen_backend(backend, image_embeds, masked=negatives is not None)
    inputs = (image_embeds, text_embeds, log_scale, bias)
    with_grad = torch.is_grad_enabled() and any(value is not None and value.requires_grad for value in inputs)
    need_text = with_grad and text_embeds.requires_grad
    # dt' follows from the gradient of either side, so one of them is formed even where both towers are frozen.
    need_image = with_grad and (image_embeds.requires_grad or not need_text)
    call = {
        "kind": "sigmoid_loss with gradients" if with_grad else "sigmoid_loss",
        "pairs": len(image_embeds) if sizes is None else "as in sizes",
        "width": image_embeds.shape[1],
        "dtype": str(image_embeds.dtype),
        "text gradients": need_text,
        "match": "none" if match_ids is None else match,
        "comm": comm,
        "accumulators": accumulators,
        "negatives": "all" if negatives is None else negatives.kind,
    }
    agree(group, call, image_embeds.device, once={"sizes": checksum(sizes), "mask": f"{negatives} at step {step}"})
    if negatives is not None:
        negatives.check_batch(sum(ranks.sizes))
    device_of = torch.cuda.device_of(image_embeds)  # type: ignore[no-untyped-call]  # kernels run on the current one
    with torch.no_grad(), torch.autocast(image_embeds.device.type, enabled=False), device_of:
        pairs = Pairs.of(*inputs, match_ids, match, chunk_size, keep_dtype=kind == "triton")
        mask = None if negatives is None else open_mask(negatives, step, pairs, ranks)
        if kind == "triton":
            # Not before it is asked for: not every installation has Triton.
            from siglightning.losses.triton_sigmoid import FusedBlocks

            blocks: Blocks = FusedBlocks(pairs, ranks, need_image, need_text)
        else:
            blocks = EagerBlocks(pairs, ring.rank, need_image, mask)
        loss, gradients = _loss_and_gradients(pairs, ranks, blocks, (need_image, need_text))
    return with_gradients(loss, list(zip(inputs, gradients, strict=True)))


def _check_matches(match_ids: Tensor | None, match: str, embeds: Tensor) -> None:
    num_pairs = len(embeds)
    if match not in ("positive", "ignore"):
        raise ValueError(f"Expected match to be 'positive' or 'ignore', got {match!r}.")
    if match_ids is not None and (match_ids.shape != (num_pairs,) or match_ids.dtype != torch.int64):
        raise ValueError(
            f"Expected match_ids int64 [{num_pairs}], one id for each pair, got {match_ids.dtype} "
            f"{list(match_ids.shape)}. Give equal ids to rows that describe the same thing."
        )
    if match_ids is not None:
        check_device("match_ids", match_ids, embeds)


def _loss_and_gradients(
    pairs: Pairs, ranks: Ranks, blocks: Blocks, need: tuple[bool, bool]
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The loss and its gradients by images, texts, t' and b, in one trip over all ranks' texts.

    ``need`` tells whether the gradients of images and of texts are wanted.
    """
    exchange, dtype = ranks.gradient_exchange(), pairs.scale.dtype
    for owner, texts, ids in pairs.blocks(exchange):
        gradient = exchange.zeros_like(texts, dtype) if need[1] else None
        blocks.add(owner, texts, ids, gradient)
        if gradient is not None:
            exchange.hand_on(gradient)
    sums = blocks.sums()
    loss = (sums.loss * ranks.share).to(dtype)
    if not any(need):
        return loss, (None,) * 4
    return loss, _gradients(sums, exchange.home().to(dtype) if need[1] else None, pairs, ranks.share)


def _gradients(
    sums: Sums, text: Tensor | None, pairs: Pairs, share: float
) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """Finish the sums in place: the gradients of images, texts, t' and b."""
    for gradient in (sums.image, text):
        if gradient is not None:
            gradient *= pairs.scale * share
    log_scale = _log_scale_gradient(sums.image, text, pairs) if sums.scaled is None else sums.scaled * share
    return sums.image, text, log_scale, sums.derivatives * share


def _log_scale_gradient(image: Tensor | None, text: Tensor | None, pairs: Pairs) -> Tensor:
    """The gradient of t' out of that of either side: ``sum(dx * x)``."""
    embeds, gradient = (pairs.images, image) if image is not None else (pairs.texts, text)
    assert gradient is not None  # one side is always formed when any gradient is wanted
    return torch.einsum("id,id->i", embeds.to(gradient.dtype), gradient).sum(dtype=torch.float64)
