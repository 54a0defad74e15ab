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

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from siglightning.distributed.exchange import Comm
from siglightning.distributed.ring import Ring
from siglightning.distributed.watch import agree
from siglightning.losses.inputs import (
    Backend,
    Ranks,
    check_embeddings,
    check_scalar,
    checksum,
    shared_sizes,
    tile_size,
)
from siglightning.losses.known import with_gradients
from siglightning.losses.negatives import Mask, Negatives, Tied, open_mask
from siglightning.losses.pairs import Match, Pairs, Tile

_FOLDS = 3  # 2**3 terms share one logarithm: see _softplus_sum


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
        chunk_size: side of a tile in rows. Memory beyond inputs and gradients is about four tiles.
        backend: ``"eager"``; ``"auto"`` chooses it.

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
        gradients of the texts under way (fp32 or fp64), D times; all of it flies while a block is computed. Gather:
        one all-gather of texts and one of ids, one all-to-all of gradients. The first call gathers 512 bytes a rank.
        Masks need more of both: see :class:`Negatives`.
    """
    check_embeddings(image_embeds, text_embeds)
    check_scalar("log_scale", log_scale)
    if bias is not None:
        check_scalar("bias", bias)
    ring = Ring.of(group)
    ranks = Ranks(ring, shared_sizes(ring, sizes, comm, len(image_embeds)), comm)
    _check_matches(match_ids, match, len(image_embeds))
    if negatives is not None and not isinstance(negatives, Negatives):
        raise ValueError(f"Expected negatives to be a siglightning.losses.Negatives or None, got {negatives!r}.")
    side = tile_size(chunk_size, backend)
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
        "negatives": "all" if negatives is None else negatives.kind,
    }
    agree(group, call, image_embeds.device, once={"sizes": checksum(sizes), "mask": f"{negatives} at step {step}"})
    if negatives is not None:
        negatives.check_batch(sum(ranks.sizes))
    with torch.no_grad(), torch.autocast(image_embeds.device.type, enabled=False):
        pairs = Pairs.of(*inputs, match_ids, match, side)
        mask = None if negatives is None else open_mask(negatives, step, pairs, ranks)
        loss, gradients = _loss_and_gradients(pairs, ranks, mask, (need_image, need_text))
    return with_gradients(loss, list(zip(inputs, gradients, strict=True)))


def _check_matches(match_ids: Tensor | None, match: str, num_pairs: int) -> None:
    if match not in ("positive", "ignore"):
        raise ValueError(f"Expected match to be 'positive' or 'ignore', got {match!r}.")
    if match_ids is not None and (match_ids.shape != (num_pairs,) or match_ids.dtype != torch.int64):
        raise ValueError(
            f"Expected match_ids int64 [{num_pairs}], one id for each pair, got {match_ids.dtype} "
            f"{list(match_ids.shape)}. Give equal ids to rows that describe the same thing."
        )


@dataclass
class _Sums:
    """What tiles add up to: loss and sum of derivatives in fp64, gradients of the embeddings without ``t D / |B|``.

    ``text`` belongs to the block of texts under way, everything else to this rank's images.
    """

    loss: Tensor
    derivatives: Tensor
    image: Tensor | None
    text: Tensor | None = None

    @classmethod
    def zeros(cls, x: Tensor, need_image: bool) -> "_Sums":
        zero = x.new_zeros((), dtype=torch.float64)
        return cls(zero, zero.clone(), torch.zeros_like(x) if need_image else None)


def _loss_and_gradients(
    pairs: Pairs, ranks: Ranks, mask: Mask | None, need: tuple[bool, bool]
) -> tuple[Tensor, Sequence[Tensor | None]]:
    """The loss and its gradients by images, texts, t' and b, in one trip over all ranks' texts.

    ``need`` tells whether the gradients of images and of texts are wanted.
    """
    need_image, need_text = need
    sums = _Sums.zeros(pairs.images, need_image)
    exchange = ranks.exchange()
    for owner, y, tiles in pairs.blocks(exchange):
        sums.text = exchange.zeros_like(y) if need_text else None
        masked = ((tile, mask(tile, owner) if mask is not None else None) for tile in tiles)
        _add_block(pairs.images, y, masked, sums)
        if sums.text is not None:
            exchange.hand_on(sums.text)
    loss = (sums.loss * ranks.share).to(pairs.images.dtype)
    if not (need_image or need_text):
        return loss, (None,) * 4
    sums.text = exchange.home() if need_text else None
    return loss, _gradients(sums, pairs, ranks.share)


def _gradients(sums: _Sums, pairs: Pairs, share: float) -> tuple[Tensor | None, Tensor | None, Tensor, Tensor]:
    """Finish the sums in place: the gradients of images, texts, t' (``sum(dx * x)``, or the same of texts) and b."""
    factor = pairs.scale * share
    for gradient in (sums.image, sums.text):
        if gradient is not None:
            gradient *= factor
    embeds, gradient = (pairs.images, sums.image) if sums.image is not None else (pairs.texts, sums.text)
    assert gradient is not None  # one side is always formed when any gradient is wanted
    log_scale = torch.einsum("id,id->i", embeds.to(gradient.dtype), gradient).sum(dtype=torch.float64)
    return sums.image, sums.text, log_scale, sums.derivatives * share


def _add_block(x: Tensor, y: Tensor, tiles: Iterator[tuple[Tile, Tied | None]], sums: _Sums) -> None:
    """Add one block, the tiles of images ``x [n, d]`` and texts ``y [m, d]``, to ``sums``."""
    for (rows, columns, s, p, positives, ignored), tied in tiles:
        if positives is not None:
            s[positives] *= -1
        if ignored is not None:
            s[ignored] = -math.inf  # softplus and sigmoid of it are exactly zero
        torch.sigmoid(s, out=p)
        sums.loss += _softplus_sum(s, p)
        if tied is not None:
            sums.loss += tied.loss()
            tied.fill(p)
        if positives is not None:
            p[positives] *= -1
        sums.derivatives += _sum(p)
        if sums.image is not None:
            sums.image[rows].addmm_(p, y[columns])
        if sums.text is not None:
            sums.text[columns].addmm_(p.T, x[rows])


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
