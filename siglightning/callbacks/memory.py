"""Peak memory of a run: of the GPU where there is one, else of the process, and of all its processes together."""

import os
import resource
import sys
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from siglightning.callbacks.logging_step import is_logging_step

_MIB = 2**20
_PROC = Path("/proc")


class MemoryMonitor(Callback):
    """Logs peak memory in MiB every ``trainer.log_every_n_steps`` steps and after every validation.

    ``memory/peak_mib``: on CUDA the most bytes that tensors took on this rank's device since the run began
    (``torch.cuda.max_memory_allocated``); elsewhere the peak resident set of this process.

    ``memory/pss_peak_mib``: the largest sum seen, at those moments, of the proportional set sizes of this process and
    its descendants (data workers, other ranks started from here), in which shared pages count once. Linux only, where
    ``/proc/<pid>/smaps_rollup`` can be read.
    """

    def __init__(self) -> None:
        self._pss_peak = 0
        self._logged_step = -1

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin a new peak."""
        self._pss_peak, self._logged_step = 0, -1
        if pl_module.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(pl_module.device)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log when the trainer does."""
        if is_logging_step(trainer, self._logged_step):
            self._logged_step = trainer.global_step
            pl_module.log("memory/peak_mib", peak_bytes(pl_module.device) / _MIB)
            self._sample()
            if self._pss_peak:
                pl_module.log("memory/pss_peak_mib", self._pss_peak / _MIB)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Look while the validation's workers are alive."""
        self._sample()

    def _sample(self) -> None:
        self._pss_peak = max(self._pss_peak, process_tree_pss_bytes(os.getpid()) or 0)


def peak_bytes(device: torch.device) -> int:
    """Most bytes in use so far: by tensors on a CUDA device, else resident in this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes, Linux KiB


def process_tree_pss_bytes(pid: int) -> int | None:
    """Proportional set size of a process and all its descendants in bytes; ``None`` where it cannot be read.

    Descendants that end meanwhile are left out.
    """
    own = _pss_bytes(pid)
    if own is None:
        return None
    return own + sum(process_tree_pss_bytes(child) or 0 for child in _children(pid))


def _pss_bytes(pid: int) -> int | None:
    try:
        lines = (_PROC / str(pid) / "smaps_rollup").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), None)


def _children(pid: int) -> list[int]:
    """Children of all threads: a data loader may fork its workers from any of them."""
    try:
        lists = [path.read_text() for path in (_PROC / str(pid) / "task").glob("*/children")]
    except OSError:
        return []
    return [int(child) for children in lists for child in children.split()]
