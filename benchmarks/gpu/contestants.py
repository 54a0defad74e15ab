"""Losses that take part: each one forward and backward pass over the same pairs."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.pairs import Inputs
from benchmarks.gpu.products import Tile, three_products
from siglightning.losses import sigmoid_loss

LIMIT, OURS, OURS_EAGER = "three matrix products", "siglightning triton", "siglightning eager"
Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Contestant:
    """One way to the loss and its gradients.

    Attributes:
        name: for tables.
        loss: from images, texts ``[n, d]``, t' and b (one element each) to the loss.
        needs: a package that it comes with.
        on_cpu: whether it runs without a GPU, too.
        by_default: whether it runs unless asked for by name.
    """

    name: str
    loss: Loss
    needs: str | None = None
    on_cpu: bool = True
    by_default: bool = True

    def absent(self, device: torch.device) -> str | None:
        """Why it cannot take part; ``None`` where it can."""
        if self.needs is not None and find_spec(self.needs) is None:
            return f"{self.needs} is not installed"
        if not self.on_cpu and device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            return "needs a GPU, or Triton's interpreter (TRITON_INTERPRET=1)"
        return None

    def run(self, inputs: Inputs) -> Tensor:
        """Forward and backward; the gradients are left in the inputs."""
        inputs.clear()
        loss = self.loss(*inputs.tensors)
        loss.backward()
        return loss


def contestants() -> list[Contestant]:
    """All of them, the limit left out."""
    return [
        *(_ours(backend) for backend in BACKENDS),
        Contestant("dense reference, compiled", _compiled),
        Contestant("dense reference, eager", dense_reference),
        Contestant("open_clip SigLipLoss", _open_clip),
        *(
            Contestant(
                f"siglip-kernel {backend}", partial(_siglip_kernel, backend=backend), "siglip_kernel", False, default
            )
            for backend, default in SIGLIP_KERNEL.items()
        ),
    ]


BACKENDS = ("triton", "eager")  # of ours
# Its public backends for bf16, and whether they run by default. `chunked_bf16` is what its `auto` takes; `fp8` has
# other numbers than bf16 inputs ask for. The rest are slower on Hopper by their own documentation.
SIGLIP_KERNEL = {
    "chunked_bf16": True,
    "chunked_bf16_pipelined": True,
    "chunked_bf16_fp8": True,
    "chunked_epilogue": False,
    "hopper": False,
    "fused_v2": False,
}


def chosen(patterns: Sequence[str]) -> list[Contestant]:
    """Those with one of the patterns in their names; those that run by default where there is none.

    Raises:
        ValueError: a pattern fits nobody.
    """
    listed = contestants()
    for pattern in patterns:
        if not any(pattern in contestant.name for contestant in listed):
            names = "; ".join(contestant.name for contestant in listed)
            raise ValueError(f"Expected a part of a contestant's name, got {pattern!r}. There are: {names}.")
    if not patterns:
        return [contestant for contestant in listed if contestant.by_default]
    return [contestant for contestant in listed if any(pattern in contestant.name for pattern in patterns)]


def limit(inputs: Inputs, tile: Tile) -> None:
    """The bare products, their results thrown away."""
    three_products(inputs.images.detach(), inputs.texts.detach(), tile)


def dense_reference(images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """SigLIP paper, Algorithm 1, over the whole matrix: the product in the inputs' dtype, all else in fp32."""
    logits = (images @ texts.T).float() * log_scale.exp() + bias
    rows = torch.arange(len(images), device=images.device)
    labels = torch.where(rows[:, None] == rows[None, :], 1.0, -1.0)
    return -functional.logsigmoid(labels * logits).sum() / len(images)


def _ours(backend: str) -> Contestant:
    loss: Any = partial(sigmoid_loss, backend=backend)
    return Contestant(f"siglightning {backend}", loss, "triton" if backend == "triton" else None, backend == "eager")


def _compiled(*tensors: Tensor) -> Tensor:
    """The same, compiled for each shape; the caller starts anew with `torch._dynamo.reset` where shapes change."""
    loss: Tensor = _COMPILED(*tensors)
    return loss


_COMPILED = torch.compile(dense_reference, dynamic=False)


def _open_clip(images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor) -> Tensor:
    """As its training loop calls it, with scalars of no dimension, as its models have them."""
    from open_clip.loss import SigLipLoss

    loss: Tensor = SigLipLoss()(images, texts, log_scale.reshape(()).exp(), bias.reshape(()))
    return loss


def _siglip_kernel(images: Tensor, texts: Tensor, log_scale: Tensor, bias: Tensor, backend: str) -> Tensor:
    from siglip_kernel import fused_siglip_loss

    loss: Tensor = fused_siglip_loss(images, texts, log_scale.reshape(()), bias.reshape(()), backend=backend)
    return loss
