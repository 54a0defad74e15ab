"""Images per second while training, and the share of time spent waiting for data."""

from collections.abc import Mapping
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from siglightning.callbacks.logging_step import is_logging_step


def images_in(batch: Mapping[str, Any]) -> int:
    """Number of images of this process's batch, taken from ``image`` or ``image_embed``; 0 when it has neither."""
    images = batch.get("image", batch.get("image_embed"))
    return 0 if images is None else len(images)


class ThroughputMonitor(Callback):
    """Logs ``throughput/images_per_s`` and ``throughput/data_wait`` every ``trainer.log_every_n_steps`` steps.

    Both are means over the window since the last logging. Images are those of all processes, each of which is taken
    to have as many as this one. Validation is left out of the clock, and so is the first step of a run, in which
    workers start and kernels are compiled. Nothing waits for a GPU: over a window of many steps the queue of kernels
    evens out.

    ``throughput/data_wait`` is the share of the window, in [0, 1], between the end of a step and the arrival of its
    successor's batch on the device: loading, copying, and whatever other callbacks do there, such as writing
    checkpoints.
    """

    def __init__(self) -> None:
        self._window_start: float | None = None
        self._step_end = self._validation_start = 0.0
        self._validating_s = 0.0  # since the end of the last step
        self._excluded_s = 0.0  # validation within the window
        self._waiting_s = 0.0
        self._num_images = 0
        self._logged_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave out what an earlier run measured; the window begins when the first step is done."""
        self._window_start = None
        self._validating_s = 0.0
        self._logged_step = -1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is here: the wait is over."""
        if self._window_start is not None:
            self._waiting_s += perf_counter() - self._step_end - self._validating_s
            self._excluded_s += self._validating_s
        self._validating_s = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count the images, and log when the trainer does."""
        now = perf_counter()
        if self._window_start is None:
            self._start_window(now)
        else:
            self._num_images += images_in(batch) * trainer.world_size
            if is_logging_step(trainer, self._logged_step):
                self._log(pl_module, now - self._window_start - self._excluded_s)
                self._logged_step = trainer.global_step
                self._start_window(now)
        self._step_end = now

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop the clock."""
        self._validation_start = perf_counter()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock again."""
        self._validating_s += perf_counter() - self._validation_start

    def _start_window(self, now: float) -> None:
        self._window_start = now
        self._excluded_s = self._waiting_s = 0.0
        self._num_images = 0

    def _log(self, pl_module: LightningModule, elapsed_s: float) -> None:
        pl_module.log("throughput/images_per_s", self._num_images / elapsed_s)
        pl_module.log("throughput/data_wait", self._waiting_s / elapsed_s)
