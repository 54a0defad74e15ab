"""Both losses as modules, for training loops that are not ours; their call drops into open_clip's."""

import math
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn

from siglightning.distributed.exchange import Accumulators, Comm
from siglightning.losses.backends import Backend
from siglightning.losses.sigmoid import sigmoid_loss
from siglightning.losses.softmax import softmax_loss

Group = dist.ProcessGroup | Literal["world"] | None


class SigmoidLoss(nn.Module):
    """:func:`sigmoid_loss` with learnable t' and b.

    Called as ``loss(image_embeds, text_embeds)`` it uses its own parameters ``log_scale`` and ``bias``, each of shape
    ``(1,)``. Called as open_clip calls its losses, ``loss(image_features, text_features, logit_scale, logit_bias,
    output_dict=...)``, it uses those, ``logit_scale`` being linear (not its logarithm).

    Args:
        init_log_scale: initial t'. log 10 (SigLIP paper, Table 4; the "10" of its section 3.2 is a slip).
        init_bias: initial b. -10 suits batches around 22,000, where one pair in ``exp(10)`` is a positive.
        chunk_size: see :func:`sigmoid_loss`.
        group: who shares the batch: a process group, ``world`` (all processes, where torch.distributed connects
            several), or ``None`` for this process alone. Own parameters need the averaging of
            DistributedDataParallel as those of the model do.
        comm: see :func:`sigmoid_loss`.
        accumulators: likewise.
        backend: likewise.
    """

    def __init__(
        self,
        init_log_scale: float = math.log(10),
        init_bias: float = -10.0,
        chunk_size: int | None = None,
        group: Group = "world",
        comm: Comm = "ring",
        accumulators: Accumulators = "full",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([init_log_scale]))
        self.bias = nn.Parameter(torch.tensor([init_bias]))
        self.group = group
        self.options: dict[str, Any] = {
            "comm": comm,
            "accumulators": accumulators,
            "chunk_size": chunk_size,
            "backend": backend,
        }

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | None = None,
        logit_bias: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss of :func:`sigmoid_loss`, or ``{"contrastive_loss": loss}`` when asked as open_clip asks."""
        log_scale = self.log_scale if logit_scale is None else logit_scale.log()
        bias = self.bias if logit_scale is None else logit_bias
        group = _resolved(self.group)
        loss = sigmoid_loss(image_features, text_features, log_scale, bias, group=group, **self.options)
        return {"contrastive_loss": loss} if output_dict else loss


class SoftmaxLoss(nn.Module):
    """:func:`softmax_loss` with a learnable t'.

    Called as ``loss(image_embeds, text_embeds)`` it uses its own ``log_scale`` of shape ``(1,)``; called as open_clip
    calls its losses, ``loss(image_features, text_features, logit_scale, output_dict=...)``, it uses that linear scale.

    Args:
        init_log_scale: initial t'. log(1 / 0.07), as in CLIP.
        chunk_size: see :func:`softmax_loss`.
        group: see :class:`SigmoidLoss`.
        comm: see :func:`softmax_loss`.
        accumulators: see :func:`sigmoid_loss`.
        backend: likewise.
    """

    def __init__(
        self,
        init_log_scale: float = math.log(1 / 0.07),
        chunk_size: int | None = None,
        group: Group = "world",
        comm: Comm = "ring",
        accumulators: Accumulators = "full",
        backend: Backend = "auto",
    ) -> None:
        super().__init__()
        self.log_scale = nn.Parameter(torch.tensor([init_log_scale]))
        self.group = group
        self.options: dict[str, Any] = {
            "comm": comm,
            "accumulators": accumulators,
            "chunk_size": chunk_size,
            "backend": backend,
        }

    def forward(
        self,
        image_features: Tensor,
        text_features: Tensor,
        logit_scale: Tensor | None = None,
        output_dict: bool = False,
    ) -> Tensor | dict[str, Tensor]:
        """Return the loss of :func:`softmax_loss`, or ``{"contrastive_loss": loss}`` when asked as open_clip asks."""
        log_scale = self.log_scale if logit_scale is None else logit_scale.log()
        group = _resolved(self.group)
        loss = softmax_loss(image_features, text_features, log_scale, group=group, **self.options)
        return {"contrastive_loss": loss} if output_dict else loss


def _resolved(group: Group) -> dist.ProcessGroup | None:
    """The group itself; all processes for ``world``, which without torch.distributed is this process alone."""
    if group != "world":
        return group
    return dist.group.WORLD if dist.is_available() and dist.is_initialized() else None
