"""Steps whose gradients are not finite: left out on all processes, with the samples to blame, and not for ever."""

import json
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer

from siglightning.batch import Batch
from siglightning.runtime.exits import NotFiniteError

PATIENCE = 20  # steps in a row that are left out before the run ends
_NAMED = 8  # samples of each process that are named


class FiniteGuard:
    """Leaves out optimizer steps with NaN or infinite gradients.

    After the averaging of DistributedDataParallel all processes hold the same gradients, so all of them decide alike
    and nothing is sent. Only once a step is left out do they tell one another which samples gave numbers that are not
    finite. The norm of the gradients is read in every step, for which a GPU's queue runs empty once.

    Under a gradient scaler (``16-mixed``) the scaler leaves steps out by itself, and lowers its scale; here they are
    counted only.

    Attributes:
        skipped: steps left out so far.
        norm: of all gradients of the newest step, a scalar; whoever clips need not take it again.
    """

    def __init__(self) -> None:
        self.skipped = self._in_a_row = 0
        self.norm: Tensor | None = None

    def lets_pass(self, task: LightningModule, optimizer: Optimizer, blame: Callable[[], list[Any]]) -> bool:
        """Whether the step may be taken; otherwise its gradients are dropped, so that the optimizer changes nothing.

        Args:
            task: whose parameters and buffers are looked at when gradients are not finite.
            optimizer: about to step.
            blame: ids of this process's samples that gave such numbers; asked when a step is left out.

        Raises:
            NotFiniteError: weights or statistics are not finite themselves, or the patience is at its end.
        """
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.norm = nn.utils.get_total_norm(gradients) if gradients else None
        if self.norm is None or bool(self.norm.isfinite()):
            self._in_a_row = 0
            return True
        self.skipped += 1
        self._in_a_row += 1
        _require_finite_state(task)
        told = _told(blame())
        if self._in_a_row >= PATIENCE:
            raise NotFiniteError(
                f"Gradients were not finite in {PATIENCE} steps in a row, up to step {task.global_step}; {told} Look "
                "at these samples, lower the learning rate, lengthen the warm-up or clip gradients "
                "(`trainer.gradient_clip_val: 1.0`); the last checkpoint is from before."
            )
        rank_zero_warn(
            f"Step {task.global_step} is left out on all processes, its gradients are not finite; {told} After "
            f"{PATIENCE} of them in a row the run ends."
        )
        if getattr(task.trainer.precision_plugin, "scaler", None) is None:
            optimizer.zero_grad(set_to_none=True)
        return False


def samples_to_blame(batch: Batch, is_finite: Tensor) -> list[Any]:
    """Ids of the samples of a batch whose numbers are not finite.

    Args:
        batch: with ``id``, or samples are named by their place.
        is_finite: bool ``[B]``.
    """
    rows = (~is_finite).nonzero().flatten().tolist()
    ids = batch.get("id", range(len(is_finite)))
    return [ids[row].item() if isinstance(ids[row], Tensor) else ids[row] for row in rows]


def _told(blame: list[Any]) -> str:
    every: list[Any] = [blame]
    if dist.is_available() and dist.is_initialized():
        every = [None] * dist.get_world_size()
        dist.all_gather_object(every, blame)
    if not any(every):
        return "no sample by itself is to blame."
    parts = [
        f"rank {rank}: {', '.join(json.dumps(one, ensure_ascii=False) for one in ids[:_NAMED])}"
        + (f" and {len(ids) - _NAMED} more" if len(ids) > _NAMED else "")
        for rank, ids in enumerate(every)
        if ids
    ]
    return f"samples that gave numbers which are not finite: {'; '.join(parts)}."


def _require_finite_state(task: LightningModule) -> None:
    """Refuse to go on where leaving steps out cannot help.

    Raises:
        NotFiniteError: a parameter, or a running statistic of a normalisation, is not finite.
    """
    for kind, tensors in (("parameter", task.named_parameters()), ("statistic", task.named_buffers())):
        for name, tensor in tensors:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NotFiniteError(
                    f"The {kind} {name} is not finite at step {task.global_step}, so that no later step can be. Lower "
                    "the learning rate, lengthen the warm-up or clip gradients; the last checkpoint is from before."
                )
