"""Steps whose gradients are not finite: left out on all processes, with the samples to blame, and not for ever."""

import json
from collections.abc import Callable
from dataclasses import dataclass
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
Blame = Callable[[Batch], list[Any]]
_NAMED = 8  # samples of each process that are named


class FiniteGuard:
    """Leaves out optimizer steps with NaN or infinite gradients.

    After the averaging of DistributedDataParallel all processes hold the same gradients, so all of them decide alike
    and nothing is sent. Only once a step is left out do they tell one another which samples gave numbers that are not
    finite.

    Fused Adam and AdamW leave a step out on the device, moments and counters included, to the bit as if it had not
    been. Nobody waits for them: what became of a step is read when the next one's gradients are on their way, or a
    checkpoint is, and only then is it counted and told; until then its batch is kept, to find the samples in. Other
    optimizers change their state whatever the gradients are (fused SGD begins its momentum so), so for them the norm
    is read in every step, for which a GPU's queue runs empty once.

    Under a gradient scaler (``16-mixed``) the scaler leaves steps out by itself, and lowers its scale; here they are
    counted only.

    Attributes:
        skipped: steps left out so far, as far as it is known.
        norm: of all gradients of the newest step, a scalar; whoever clips need not take it again.
    """

    def __init__(self) -> None:
        self.skipped = self._in_a_row = 0
        self.norm: Tensor | None = None
        self._open: _Verdict | None = None

    def __getstate__(self) -> dict[str, Any]:
        """For copies and pickles, which have counts but no step under way; a device's event could not be copied."""
        return self.__dict__ | {"_open": None, "norm": None}

    def lets_pass(self, task: LightningModule, optimizer: Optimizer, batch: Batch | None, blame: Blame) -> bool:
        """Whether the step may be taken; otherwise its gradients are dropped, so that the optimizer changes nothing.

        Args:
            task: whose parameters and buffers are looked at when gradients are not finite.
            optimizer: about to step.
            batch: of this process, to be looked at when a step is left out.
            blame: from a batch to the ids of its samples that gave such numbers.

        Raises:
            NotFiniteError: weights or statistics are not finite themselves, or the patience is at its end.
        """
        self.settle(task, blame)
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self.norm = nn.utils.get_total_norm(gradients) if gradients else None
        is_scaled = getattr(task.trainer.precision_plugin, "scaler", None) is not None
        if self.norm is not None and not is_scaled and leaves_out_by_itself(optimizer):
            self._open = _Verdict.of(~self.norm.isfinite(), optimizer, task.global_step, batch)
            return True
        if self.norm is None or bool(self.norm.isfinite()):
            self._in_a_row = 0
            return True
        self._leave_out(task, task.global_step, batch, blame)
        if not is_scaled:
            optimizer.zero_grad(set_to_none=True)
        return False

    def settle(self, task: LightningModule, blame: Blame) -> None:
        """Take up what became of the newest step, where that was not known yet; on all processes at the same time.

        Raises:
            NotFiniteError: as :meth:`lets_pass`.
        """
        verdict, self._open = self._open, None
        if verdict is None:
            return
        if verdict.take_up():
            self._leave_out(task, verdict.step, verdict.batch, blame)
        else:
            self._in_a_row = 0

    def _leave_out(self, task: LightningModule, step: int, batch: Batch | None, blame: Blame) -> None:
        self.skipped += 1
        self._in_a_row += 1
        _require_finite_state(task, step)
        told = _told([] if batch is None else blame(batch))
        if self._in_a_row >= PATIENCE:
            raise NotFiniteError(
                f"Gradients were not finite in {PATIENCE} steps in a row, up to step {step}; {told} Look at these "
                "samples, lower the learning rate, lengthen the warm-up or clip gradients "
                "(`trainer.gradient_clip_val: 1.0`); the last checkpoint is from before."
            )
        rank_zero_warn(
            f"Step {step} is left out on all processes, its gradients are not finite; {told} After {PATIENCE} of them "
            "in a row the run ends."
        )


@dataclass
class _Verdict:
    """Whether a step was left out, on its way from the device.

    Attributes:
        found: one where it was, a float on the host; there once ``copied`` has come to pass.
        copied: an event of the device, ``None`` on a CPU.
        optimizer: that was told.
        step: which.
        batch: of this process.
    """

    found: Tensor
    copied: torch.Event | None
    optimizer: Any
    step: int
    batch: Batch | None

    @classmethod
    def of(cls, is_bad: Tensor, optimizer: Any, step: int, batch: Batch | None) -> "_Verdict":
        """Tell the optimizer, and begin to copy."""
        optimizer.found_inf = is_bad.float()
        found, copied = optimizer.found_inf.to("cpu", non_blocking=True), None  # into pinned memory
        if is_bad.device.type != "cpu":
            copied = torch.Event(is_bad.device)
            copied.record()
        return cls(found, copied, optimizer, step, batch)

    def take_up(self) -> bool:
        """Whether the step was left out; waits for it, and no longer."""
        del self.optimizer.found_inf
        if self.copied is not None:
            self.copied.synchronize()
        return bool(self.found)


def leaves_out_by_itself(optimizer: Optimizer) -> bool:
    """Whether a step of an optimizer changes nothing at all where its ``found_inf`` is one."""
    is_adam = type(optimizer) in (torch.optim.Adam, torch.optim.AdamW)
    # Kernels of other devices may take no notice of it: those of Apple's did not at the time of torch 2.11.
    devices = {p.device.type for group in optimizer.param_groups for p in group["params"]}
    return is_adam and all(group["fused"] for group in optimizer.param_groups) and devices <= {"cpu", "cuda"}


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


def _require_finite_state(task: LightningModule, step: int) -> None:
    """Refuse to go on where leaving steps out cannot help.

    Raises:
        NotFiniteError: a parameter, or a running statistic of a normalisation, is not finite.
    """
    for kind, tensors in (("parameter", task.named_parameters()), ("statistic", task.named_buffers())):
        for name, tensor in tensors:
            if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
                raise NotFiniteError(
                    f"The {kind} {name} is not finite at step {step}, so that no later step can be. Lower "
                    "the learning rate, lengthen the warm-up or clip gradients; the last checkpoint is from before."
                )
