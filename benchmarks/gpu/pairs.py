"""Random pairs of embeddings, their exact gradients on a sample, and how far others are from them."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

LOG_SCALE, BIAS = math.log(10.0), -10.0  # SigLIP paper, section 4.9
SIGNAL = 0.3  # share of the picture in its caption, so that pairs are nearer than others
SAMPLED = 64
BLOCK = 16_384  # rows of the other side in one step of the exact gradients: 64 x 16,384 logits
DENSE_ENTRIES = 2**26  # logits in one step of the whole pass, 0.5 GiB in float64


@dataclass
class Inputs:
    """A batch of pairs.

    Attributes:
        images: unit rows ``[n, d]``, with a gradient after a run.
        texts: likewise; row i belongs to image i.
        log_scale: t', fp32 ``[1]``.
        bias: b, fp32 ``[1]``.
    """

    images: Tensor
    texts: Tensor
    log_scale: Tensor
    bias: Tensor

    @property
    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """All four, in the order in which losses take them."""
        return self.images, self.texts, self.log_scale, self.bias

    def clear(self) -> None:
        """Forget the gradients."""
        for tensor in self.tensors:
            tensor.grad = None

    def gradient_bytes(self) -> int:
        """Of the gradients that there are."""
        return sum(tensor.grad.nbytes for tensor in self.tensors if tensor.grad is not None)


def make_inputs(pairs: int, dim: int, dtype: torch.dtype, device: torch.device, seed: int = 0) -> Inputs:
    """Random pairs that want gradients."""
    generator = torch.Generator(device).manual_seed(seed)
    images = _unit(torch.randn(pairs, dim, generator=generator, device=device))
    noise = _unit(torch.randn(pairs, dim, generator=generator, device=device))
    texts = _unit(noise.add_(images, alpha=SIGNAL))
    scalars = (torch.tensor([value], device=device) for value in (LOG_SCALE, BIAS))
    return Inputs(*(value.requires_grad_() for value in (images.to(dtype), texts.to(dtype), *scalars)))


def copies_for(cache_bytes: int, pairs: int, dim: int, itemsize: int) -> int:
    """How many batches take turns, so that none is in the cache still when it comes again; at most 16."""
    return max(1, min(16, math.ceil(2 * cache_bytes / (2 * pairs * dim * itemsize))))


class Reference(NamedTuple):
    """Exact numbers of one batch, in float64.

    Attributes:
        rows: indices of the sample.
        images: gradients of these images ``[s, d]``.
        texts: gradients of these texts.
        value: the loss; ``None``, as what follows, where a pass over all pairs would take too long.
        log_scale: gradient of t'.
        bias: gradient of b.
    """

    rows: Tensor
    images: Tensor
    texts: Tensor
    value: float | None
    log_scale: float | None
    bias: float | None


@torch.no_grad()
def reference(inputs: Inputs, whole: bool) -> Reference:
    """The exact gradients of a sample of rows, and with ``whole`` the loss and the gradients of t' and b.

    A row's gradient needs that row of the matrix alone, so a sample costs ``s n d`` and is cheap at any size; the
    loss and the gradients of t' and b are sums over the whole matrix.
    """
    rows = sampled_rows(len(inputs.images)).to(inputs.images.device)
    images, texts = (_sampled_gradient(inputs, rows, swap) for swap in (False, True))
    value, log_scale, bias = _whole_pass(inputs) if whole else (None, None, None)
    return Reference(rows, images, texts, value, log_scale, bias)


def sampled_rows(pairs: int) -> Tensor:
    """The first row, the last, and others drawn at random; sorted, each once."""
    drawn = torch.randperm(pairs, generator=torch.Generator().manual_seed(1))[: SAMPLED - 2]
    return torch.cat([drawn, torch.tensor([0, pairs - 1])]).unique()


def errors(inputs: Inputs, loss: Tensor | None, exact: Reference) -> dict[str, float]:
    """How far the gradients that a run has left, and its loss, are from the exact ones.

    Returns:
        ``images`` and ``texts``: norm of the error over the norm of the exact gradients, of the sample.
        ``images_max`` and ``texts_max``: the largest error over the largest entry.
        ``value``, ``log_scale``, ``bias``: relative errors, where the exact number is known.
    """
    found = {}
    for name, tensor, gradient in (("images", inputs.images, exact.images), ("texts", inputs.texts, exact.texts)):
        if tensor.grad is not None:
            found |= _row_errors(name, tensor.grad[exact.rows].double(), gradient)
    for name, value, number in (
        ("value", loss, exact.value),
        ("log_scale", inputs.log_scale.grad, exact.log_scale),
        ("bias", inputs.bias.grad, exact.bias),
    ):
        if value is not None and number is not None:
            found[name] = abs(float(value.detach().double()) - number) / abs(number)
    return found


def rounding(exact: Reference, dtype: torch.dtype) -> dict[str, float]:
    """The same errors of the exact gradients themselves once they are rounded to ``dtype``: no result can be nearer."""
    pairs = (("images", exact.images), ("texts", exact.texts))
    return {
        key: error
        for name, gradient in pairs
        for key, error in _row_errors(name, gradient.to(dtype).double(), gradient).items()
    }


def _row_errors(name: str, found: Tensor, exact: Tensor) -> dict[str, float]:
    difference = found - exact
    return {
        name: float(difference.norm() / exact.norm()),
        f"{name}_max": float(difference.abs().max() / exact.abs().max()),
    }


def _sampled_gradient(inputs: Inputs, rows: Tensor, swap: bool) -> Tensor:
    own, others = (inputs.texts, inputs.images) if swap else (inputs.images, inputs.texts)
    scale, bias = inputs.log_scale.double().exp(), inputs.bias.double()
    x = own[rows].double()
    gradient = torch.zeros_like(x)
    for start, block in _blocks(others, BLOCK):
        derivative = torch.sigmoid(scale * (x @ block.T) + bias)
        here = (rows >= start) & (rows < start + len(block))
        derivative[here.nonzero()[:, 0], rows[here] - start] -= 1
        gradient.addmm_(derivative, block)
    return gradient * (scale / len(own))


def _whole_pass(inputs: Inputs) -> tuple[float, float, float]:
    scale, bias, n = inputs.log_scale.double().exp(), inputs.bias.double(), len(inputs.images)
    texts, step = inputs.texts.double(), max(1, DENSE_ENTRIES // n)
    value = log_scale = of_bias = 0.0
    for start, block in _blocks(inputs.images, step):
        products = scale * (block @ texts.T)
        logits, pairs = products + bias, torch.arange(len(block), device=block.device)
        value -= float(functional.logsigmoid(-logits).sum() + logits[pairs, start + pairs].sum())
        derivative = torch.sigmoid(logits)
        derivative[pairs, start + pairs] -= 1
        log_scale += float((derivative * products).sum())
        of_bias += float(derivative.sum())
    return value / n, log_scale / n, of_bias / n


def _blocks(rows: Tensor, size: int) -> Iterator[tuple[int, Tensor]]:
    for start in range(0, len(rows), size):
        yield start, rows[start : start + size].double()


def _unit(rows: Tensor) -> Tensor:
    return functional.normalize(rows, dim=1)
