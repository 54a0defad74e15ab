"""The losses over several processes against the whole matrix in float64: a check for users, on their machine.

Here and not beside the command, since the processes that are started import nothing heavier than this.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from siglightning.distributed.local import new_group
from siglightning.losses.sigmoid import sigmoid_loss
from siglightning.losses.softmax import softmax_loss

PAIRS, DIM = 12, 16  # on each process
TILE = 5  # rows: several tiles of which the last is smaller, from so few pairs


class Settings(NamedTuple):
    """Of the loss.

    Attributes:
        loss: ``sigmoid`` or ``softmax``.
        match: ``positive``, ``ignore`` or ``none``: what rows with equal match ids are to the sigmoid loss.
        comm: how texts travel, ``ring`` or ``gather``.
    """

    loss: str
    match: str
    comm: str


def made_up(rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Unit rows ``[PAIRS, DIM]`` of images and texts in float64, and match ids of which some are on other ranks."""
    generator = torch.Generator().manual_seed(rank)
    images, texts = (
        functional.normalize(torch.randn(PAIRS, DIM, generator=generator, dtype=torch.float64), dim=1) for _ in range(2)
    )
    ids = torch.arange(PAIRS) + 1000 * rank
    ids[:2] = torch.tensor([7, 8])  # on every rank
    ids[3] = ids[4]
    return images, texts, ids


def ring_part(settings: Settings) -> list[Tensor]:
    """What one rank of a process group computes: its loss, and gradients of images, texts, t' and b."""
    return _part(settings, dist.get_rank(), new_group())


def whole_part(settings: Settings) -> list[Tensor]:
    """The same for a single process."""
    return _part(settings, 0, None)


def _part(settings: Settings, rank: int, group: dist.ProcessGroup | None) -> list[Tensor]:
    images, texts, ids = made_up(rank)
    inputs = [images.requires_grad_(), texts.requires_grad_(), *_scalars()]
    options: dict[str, Any] = {"group": group, "comm": settings.comm, "chunk_size": TILE}
    if settings.loss == "softmax":
        loss = softmax_loss(*inputs[:3], **options)
    else:
        options["match_ids"] = None if settings.match == "none" else ids
        options["match"] = "ignore" if settings.match == "ignore" else "positive"
        loss = sigmoid_loss(*inputs, **options)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return [loss.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in inputs)]


def largest_difference(parts: Sequence[Sequence[Tensor]], settings: Settings) -> float:
    """Largest relative difference of value and gradients from :func:`dense`, once averaged over ranks."""
    expected = dense(len(parts), settings)
    size = len(parts)
    loss, images, texts, scale, bias = zip(*parts, strict=True)
    found = [
        torch.stack(loss).mean(),
        torch.cat(images) / size,
        torch.cat(texts) / size,
        torch.stack(scale).mean(0),
        torch.stack(bias).mean(0),
    ]
    errors = [(a - b).abs().max() / b.abs().max().clamp(min=1e-3) for a, b in zip(found, expected, strict=True)]
    return float(torch.stack(errors).nan_to_num(math.inf).max())


def dense(ranks: int, settings: Settings) -> list[Tensor]:
    """Loss and gradients of the whole matrix, by autograd (SigLIP paper, Algorithm 1; section 3.1 for softmax)."""
    images, texts, ids = (torch.cat(each) for each in zip(*map(made_up, range(ranks)), strict=True))
    inputs = [images.requires_grad_(), texts.requires_grad_(), *_scalars()]
    logits = inputs[2].exp() * images @ texts.T
    own = torch.eye(len(images), dtype=torch.bool)
    if settings.loss == "softmax":
        pairs = torch.arange(len(images))
        loss = (functional.cross_entropy(logits, pairs) + functional.cross_entropy(logits.T, pairs)) / 2
    else:
        same = own if settings.match == "none" else ids[:, None] == ids
        positive = own if settings.match == "ignore" else same
        counted = own | ~same if settings.match == "ignore" else torch.ones_like(own)
        terms = functional.softplus(torch.where(positive, -1.0, 1.0) * (logits + inputs[3]))
        loss = (terms * counted).sum() / len(images)
    loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    return [loss.detach(), *(torch.zeros_like(x) if x.grad is None else x.grad for x in inputs)]


def _scalars() -> list[Tensor]:
    """A scale's logarithm t' and a bias b."""
    return [torch.tensor([value], dtype=torch.float64, requires_grad=True) for value in (math.log(10), -4.0)]
