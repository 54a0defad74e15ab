"""Hand autograd gradients that are already known: forward found them, and backward only scales them."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable


def with_gradients(loss: Tensor, known: Sequence[tuple[Tensor | None, Tensor | None]]) -> Tensor:
    """Return ``loss`` as a function of the inputs that want a gradient.

    Args:
        loss: scalar that autograd knows nothing of.
        known: inputs, each with the gradient of the loss by it, in the dtype of the arithmetic and of the input's
            number of elements. Pairs with ``None`` are passed over.

    Returns:
        A scalar of the same value. Kept for backward: the gradients of inputs that want one, and nothing else. Each
        input has a node of its own, so that autograd frees one gradient before it scales the next. Differentiable
        once.
    """
    for value, gradient in known:
        if value is not None and gradient is not None and value.requires_grad:
            scaled: Tensor = _Known.apply(loss, value, gradient)
            loss = scaled
    return loss


class _Known(torch.autograd.Function):
    """The loss itself, with one input's gradient beside it."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, value: Tensor, gradient: Tensor) -> Tensor:
        ctx.save_for_backward(gradient)
        ctx.dtype, ctx.shape = value.dtype, value.shape
        return loss.clone()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor) -> tuple[Tensor, Tensor, None]:
        """Scale by the incoming gradient, and only then cast to the input's dtype.

        Under a GradScaler the incoming gradient is large; casting first would flush small fp16 gradients to zero.
        """
        (gradient,) = ctx.saved_tensors
        factor = grad_loss.to(gradient.dtype)
        gradient = gradient * factor if _graph_is_kept() else gradient.mul_(factor)
        return grad_loss, gradient.to(ctx.dtype).reshape(ctx.shape), None


def _graph_is_kept() -> bool:
    """Whether backward may come here again (``retain_graph``); where torch does not tell, it may."""
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return ask is None or bool(ask())
