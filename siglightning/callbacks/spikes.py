"""How often the training loss has jumped, over the whole run."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from siglightning.callbacks.logging_step import is_logging_step
from siglightning.evaluation.spikes import SpikeCounter


class SpikeMonitor(Callback):
    """Logs ``train/spikes``, the spikes of the training loss since the run began, at the trainer's logging interval.

    Every step counts, by the rule of :class:`~siglightning.evaluation.spikes.SpikeCounter`, but no step waits for its
    loss: losses stay on the device until the next logged step, and are then averaged over the processes and fetched
    together. A checkpoint holds the count and the losses that it rests on, so that a resumed run counts as an
    undisturbed one does.

    Args:
        window: losses to compare with.
        deviations: robust standard deviations above their median that make a spike.
        share: of the median that a spike must exceed it by.
    """

    def __init__(self, window: int = 100, deviations: float = 8.0, share: float = 0.05) -> None:
        self._counter = SpikeCounter(window, deviations, share)
        self._waiting: list[Tensor] = []
        self._trainer: Trainer | None = None
        self._logged_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Losses that a run left behind when it failed are not this one's."""
        self._trainer, self._logged_step = trainer, -1
        self._waiting = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Keep the loss; count when the trainer logs."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if isinstance(loss, Tensor):
            self._waiting.append(loss.detach().reshape(()))
        if is_logging_step(trainer, self._logged_step):
            self._logged_step = trainer.global_step
            self._fetch()
            pl_module.log("train/spikes", float(self._counter.count))

    def state_dict(self) -> dict[str, Any]:
        """The count and what it rests on; all processes ask together, as they save together."""
        self._fetch()
        return self._counter.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on counting."""
        self._counter.load_state_dict(state_dict)

    def _fetch(self) -> None:
        if self._waiting and self._trainer is not None:
            losses = self._trainer.strategy.reduce(torch.stack(self._waiting).float(), reduce_op="mean")
            self._waiting = []
            self._counter.add(losses.tolist())
