"""A run that is asked to stop: all processes agree on the step after which they do, and save it."""

import time
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from siglightning.runtime.signals import StopSignals

# Seconds of training between two questions to the other processes; stopping begins at most so much later. A question
# took 0.2 ms between two processes and 0.4 ms between three on two cores (medians of 500, gloo, torch 2.15): 0.1 %.
# Between machines it was not measured.
ASK_EVERY_S = 0.5
TIMEOUT = timedelta(minutes=2)  # of a question, under strategies without a ring; that of the ring, unless set


class GracefulStop(Callback):
    """Ends training after a whole step when any process got SIGTERM, SIGUSR1 or Ctrl-C.

    Processes ask one another once in :data:`ASK_EVERY_S` of training: one all-reduce of two numbers, over gloo and
    with the time-out of the ring. All learn the same, so all stop after the same step.
    :class:`~siglightning.runtime.run_checkpoint.RunCheckpoint` saves that step, after its validation where one
    follows, and the next one does not begin.

    Lightning's own way broadcasts inside the signal's handler, where a signal to one process alone hangs all.

    Args:
        signals: of this process; ``None`` takes them over when training begins.
    """

    def __init__(self, signals: StopSignals | None = None) -> None:
        self._signals = signals or StopSignals()
        self._group: dist.ProcessGroup | None = None
        self._asked_step = self._next_step = 0
        self._asked_s = 0.0
        self.agreed = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """From now on signals wait for the end of a step."""
        # Lightning asks process 0 in every step whether it was terminated. The stop tests fail when the name goes.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if trainer.world_size > 1 and self._group is None:
            timeout = getattr(trainer.strategy, "ring_timeout", TIMEOUT)
            group = dist.new_group(backend="gloo", timeout=timeout, group_desc="siglightning_stop")
            assert isinstance(group, dist.ProcessGroup)  # every process is a member
            self._group = group
        self._asked_step, self._next_step = trainer.global_step, trainer.global_step + 1
        self._asked_s, self.agreed = time.monotonic(), False
        self._signals.install()
        self._signals.waits_for_step = True

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Raise where the others do, too.

        Raises:
            StoppedError: all have agreed to stop, and the step before is saved.
        """
        if self.agreed:
            raise self._signals.stop()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look for a signal, and ask the others when it is time. Never in the middle of an accumulated step."""
        if trainer.global_step > self._asked_step and trainer.global_step >= self._next_step:
            self._ask(trainer.global_step)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Ask once more: what follows training must begin on all processes, or on none."""
        self._ask(trainer.global_step)
        self._signals.waits_for_step = False

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Training is over: signals need not wait any more."""
        self._signals.waits_for_step = False

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let the group and the signals go."""
        self._signals.waits_for_step = False
        if self._group is not None and dist.is_initialized():
            dist.destroy_process_group(self._group)
        self._group = None

    def _ask(self, step: int) -> None:
        """All processes learn whether one was asked to stop, and after how many steps they ask again."""
        now = time.monotonic()
        per_step = (now - self._asked_s) / max(1, step - self._asked_step)
        interval = 1 if per_step <= 0 else max(1, int(ASK_EVERY_S / per_step))
        if self._group is None:  # nobody to ask: the flag costs nothing
            self.agreed, interval = bool(self._signals.received), 1
        else:
            # The slowest process decides, since all must ask after the same step.
            told = torch.tensor([int(bool(self._signals.received)), -interval])
            dist.all_reduce(told, op=dist.ReduceOp.MAX, group=self._group)
            self.agreed, interval = bool(told[0]), -int(told[1])
        self._asked_step, self._next_step, self._asked_s = step, step + interval, time.monotonic()


def stop_is_agreed(trainer: Trainer) -> bool:
    """Whether all processes stop after the step that has just ended."""
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by its callback connector
    return any(isinstance(callback, GracefulStop) and callback.agreed for callback in callbacks)
