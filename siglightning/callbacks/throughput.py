"""Images and operations per second while training, and the share of time spent waiting for data."""

from collections.abc import Mapping
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from siglightning.callbacks.device_peak import peak_of
from siglightning.callbacks.logging_step import is_logging_step
from siglightning.models import ImageEncoder
from siglightning.models.flops import step_flops


def images_in(batch: Mapping[str, Any]) -> int:
    """Number of images of this process's batch, taken from ``image`` or ``image_embed``; 0 when it has neither."""
    images = batch.get("image", batch.get("image_embed"))
    return 0 if images is None else len(images)


class ThroughputMonitor(Callback):
    """Logs ``throughput/*`` every ``trainer.log_every_n_steps`` steps: what training does in a second.

    All are means over the window since the last logging. Validation is left out of the clock, and so is the first step
    of a run, in which workers start and kernels are compiled. Nothing waits for a GPU: over a window of many steps the
    queue of kernels evens out.

    ``throughput/images_per_s``: images of all processes, each of which is taken to have as many as this one.

    ``throughput/data_wait`` is the share of the window, in [0, 1], between the end of a step and the arrival of its
    successor's batch on the device: loading, copying, and whatever other callbacks do there, such as writing
    checkpoints.

    ``throughput/tflops_per_s``: the operations that the steps of all processes need, as
    :func:`~siglightning.models.flops.step_flops` counts them, without what is recomputed. ``throughput/mfu``, the model
    FLOP utilisation: their share, in [0, 1], of what all devices can do; logged where that is known.

    Args:
        peak_tflops: most TFLOP/s of one device in dense matrix products; ``None`` takes those of its data sheet for
            bf16 and fp16, see :func:`~siglightning.callbacks.device_peak.peak_tflops`.

    Raises:
        ValueError: a peak that is not above 0.
    """

    def __init__(self, peak_tflops: float | None = None) -> None:
        if peak_tflops is not None and peak_tflops <= 0:
            raise ValueError(f"Expected peak_tflops above 0, or null for the data sheet's; got {peak_tflops}.")
        self.peak_tflops = peak_tflops
        self._flops_by_shapes: dict[tuple[tuple[str, Any], ...], int] = {}
        self._num_flops = 0
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
        self._flops_by_shapes.clear()  # of another network, or with other parts frozen

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """The batch is here: the wait is over."""
        if self._window_start is not None:
            self._waiting_s += perf_counter() - self._step_end - self._validating_s
            self._excluded_s += self._validating_s
        self._validating_s = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count images and operations, and log when the trainer does."""
        flops = self._flops_of(trainer, pl_module, batch)
        now = perf_counter()
        if self._window_start is None:
            self._start_window(now)
        else:
            self._num_images += images_in(batch) * trainer.world_size
            self._num_flops += flops * trainer.world_size
            if is_logging_step(trainer, self._logged_step):
                self._log(trainer, pl_module, now - self._window_start - self._excluded_s)
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
        self._num_images = self._num_flops = 0

    def _flops_of(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> int:
        """Of this process's batch; counted once for its shapes, 0 where nothing is known."""
        network = getattr(pl_module, "network", None)
        if not isinstance(network, ImageEncoder) or not isinstance(batch, Mapping):
            return 0
        shapes = tuple((name, value.shape) for name, value in batch.items() if isinstance(value, Tensor))
        if shapes not in self._flops_by_shapes:
            self._flops_by_shapes[shapes] = _counted(network, batch, trainer.world_size)
        return self._flops_by_shapes[shapes]

    def _log(self, trainer: Trainer, pl_module: LightningModule, elapsed_s: float) -> None:
        pl_module.log("throughput/images_per_s", self._num_images / elapsed_s)
        pl_module.log("throughput/data_wait", self._waiting_s / elapsed_s)
        if not self._num_flops:
            return
        tflops_per_s = self._num_flops / elapsed_s / 1e12
        pl_module.log("throughput/tflops_per_s", tflops_per_s)
        peak = self.peak_tflops or peak_of(pl_module.device, str(trainer.precision))
        if peak is not None:
            pl_module.log("throughput/mfu", tflops_per_s / (peak * trainer.world_size))


def _counted(network: ImageEncoder, batch: Mapping[str, Any], world_size: int) -> int:
    try:
        return step_flops(network, batch, world_size)
    except Exception as error:  # a tower is anybody's code, and no reason to end a run that trains
        rank_zero_info(f"Operations of a step are not known, so throughput/tflops_per_s is not logged: {error}")
        return 0
