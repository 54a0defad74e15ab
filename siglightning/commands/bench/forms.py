"""What is compared: our losses, their textbook forms, and open_clip's, behind one signature."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from siglightning.losses import sigmoid_loss, softmax_loss

Run = Callable[[Tensor, Tensor, Tensor, Tensor, dist.ProcessGroup | None], Tensor]


@dataclass(frozen=True)
class Form:
    """One way to compute one of the losses.

    Attributes:
        name: for tables.
        family: of which loss.
        run: from image and text embeddings ``[b, d]``, t', b and the group of several ranks to this rank's loss.
        on_one: whether it runs on one process.
        on_many: whether it runs on several.
    """

    name: str
    family: Literal["sigmoid", "softmax"]
    run: Run
    on_one: bool = True
    on_many: bool = True

    def runs_on(self, world_size: int) -> bool:
        """Whether it can be measured on so many ranks."""
        return self.on_one if world_size == 1 else self.on_many


def forms() -> dict[str, Form]:
    """All forms by name; open_clip's where it is installed."""
    listed = [
        Form("sigmoid, naive", "sigmoid", naive_sigmoid, on_many=False),
        Form("sigmoid, tiled (ours)", "sigmoid", _our_sigmoid, on_many=False),
        Form("sigmoid, ring (ours)", "sigmoid", _our_sigmoid, on_one=False),
        Form("sigmoid, gather (ours)", "sigmoid", partial(_our_sigmoid, comm="gather"), on_one=False),
        Form("softmax, naive", "softmax", naive_softmax, on_many=False),
        Form("softmax, streaming (ours)", "softmax", _our_softmax, on_many=False),
        Form("softmax, ring (ours)", "softmax", _our_softmax, on_one=False),
    ]
    if find_spec("open_clip") is not None:
        variants = ("bidir", "shift", "reduce", "gather")
        listed += [
            Form(f"sigmoid, open_clip {variant}", "sigmoid", partial(_open_clip_sigmoid, variant=variant), on_one=False)
            for variant in variants
        ]
        listed += [
            Form("sigmoid, open_clip", "sigmoid", partial(_open_clip_sigmoid, variant="bidir"), on_many=False),
            Form("softmax, open_clip gathered", "softmax", _open_clip_softmax),
        ]
    return {form.name: form for form in listed}


def naive_sigmoid(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor, group: Any = None) -> Tensor:
    """SigLIP paper, Algorithm 1, as it is printed: the whole matrix, and a matrix of labels."""
    logits = log_scale.exp() * x @ y.T + bias
    labels = 2 * torch.eye(len(x), dtype=x.dtype) - 1
    return -functional.logsigmoid(labels * logits).sum() / len(x)


def naive_softmax(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor, group: Any = None) -> Tensor:
    """The mean of both cross entropies (SigLIP paper, section 3.1) over the whole matrix."""
    logits = log_scale.exp() * x @ y.T
    pairs = torch.arange(len(x))
    return (functional.cross_entropy(logits, pairs) + functional.cross_entropy(logits.T, pairs)) / 2


def _our_sigmoid(
    x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor, group: Any, comm: Literal["ring", "gather"] = "ring"
) -> Tensor:
    return sigmoid_loss(x, y, log_scale, bias, group=group, comm=comm)


def _our_softmax(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor, group: Any) -> Tensor:
    return softmax_loss(x, y, log_scale, group=group)


def _open_clip_sigmoid(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor, group: Any, variant: str) -> Tensor:
    from open_clip.loss import SigLipLoss

    loss: Tensor = SigLipLoss(**_place(group), dist_impl=variant)(x, y, log_scale.exp(), bias)
    return loss


def _open_clip_softmax(x: Tensor, y: Tensor, log_scale: Tensor, bias: Tensor, group: Any) -> Tensor:
    from open_clip.loss import ClipLoss

    loss: Tensor = ClipLoss(local_loss=True, gather_with_grad=True, **_place(group))(x, y, log_scale.exp())
    return loss


def _place(group: dist.ProcessGroup | None) -> dict[str, int]:
    return {} if group is None else {"rank": group.rank(), "world_size": group.size()}
