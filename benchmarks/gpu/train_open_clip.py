"""open_clip's training: its own `train_one_epoch`, an epoch a turn, with its best flags.

The function is that of the installed package, unchanged: autocast, the copies to the device, `zero_grad`, forward,
SigLipLoss, backward, the optimizer, its clamping of the scale, its meters. Around it stands what its `main` does for
`--siglip --torchcompile --precision amp_bf16` (or `pure_bf16`) on one GPU without a schedule: the same parameter groups
without decay, `torch.compile` of the whole model, tf32 and cuDNN's search for kernels. One thing is better than its
`main`, which has no flag for it: AdamW is fused.
"""

from argparse import Namespace
from collections.abc import Iterator
from typing import Any

import torch
from open_clip import get_input_dtype
from open_clip.loss import SigLipLoss
from open_clip_train.train import train_one_epoch
from torch import Tensor, nn

from benchmarks.gpu.train_setup import Batches, Window, Work, adamw


class OpenClipTraining:
    """One model that is trained in turns.

    Args:
        work: what is trained.
        model: of open_clip, in the dtype that goes with the precision.
        precision: as its option of that name says.
    """

    def __init__(self, work: Work, model: Any, precision: str) -> None:
        self.work, self.original, self.precision = work, model, precision
        self.model = torch.compile(model) if work.compiled else model

    def turn(self, batches: Batches, window: Window) -> None:
        """Train so many steps, timed by the window; before and after, the model is on the CPU, as ours is."""
        self.original.to(self.work.device)
        data = {"train": _Epoch(batches, input_dtype(self.precision), window)}
        optimizer = adamw(parameter_groups(self.original))
        train_one_epoch(self.model, data, SigLipLoss(), 0, optimizer, None, None, None, self._arguments(window))
        self.original.zero_grad(set_to_none=True)
        self.original.cpu()

    def _arguments(self, window: Window) -> Namespace:
        """What the loop reads of its command line."""
        return Namespace(
            **{"device": str(self.work.device), "precision": self.precision, "batch_size": self.work.batch},
            **{"rank": 0, "world_size": 1, "horovod": False, "distill": False, "wandb": False},
            **{"accum_freq": 1, "grad_clip_norm": None, "skip_scheduler": True, "log_every_n_steps": window.steps},
        )


class _Epoch:
    """What the loop knows of its data; asking for the next batch tells that the step before has been asked for."""

    def __init__(self, batches: Batches, dtype: torch.dtype, window: Window) -> None:
        self.images, self.texts, self.window = batches.normalised[dtype], batches.texts, window
        self.dataloader, self.num_batches = self, window.total
        self.num_samples = window.total * len(self.texts[0])

    def set_epoch(self, epoch: int) -> None:
        """All epochs are alike."""

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for step in range(self.num_batches):
            yield self.images[step % len(self.images)], self.texts[step % len(self.texts)]
            self.window.finished(step + 1)


def input_dtype(precision: str) -> torch.dtype:
    """In which pictures are kept in memory: that in which the loop hands them to the model."""
    return get_input_dtype(precision) or torch.float32


def parameter_groups(model: nn.Module) -> list[dict[str, Any]]:
    """Which parameters decay, by the rule of its `main`."""

    def is_left_out(name: str, parameter: Tensor) -> bool:
        return parameter.ndim < 2 or any(part in name for part in ("bn", "ln", "bias", "logit_scale"))

    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    return [
        {"params": [parameter for name, parameter in named if is_left_out(name, parameter)], "weight_decay": 0.0},
        {"params": [parameter for name, parameter in named if not is_left_out(name, parameter)]},
    ]
