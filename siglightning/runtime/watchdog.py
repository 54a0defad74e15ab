"""A run that stands still ends, with the stacks of all threads, instead of holding its machines for ever."""

import faulthandler
import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from siglightning.runtime.exits import ExitCode, ExitRecord

_LOOK_EVERY_S = 1.0


class Watchdog(Callback):
    """Ends this process with exit code 4 when neither a step nor a batch of an evaluation has ended for long.

    A thread looks once a second. What it writes to the standard error and to ``hang-rank-N.txt`` in the run directory
    names the rank, the step and what was under way, and holds the Python stack of every thread. Transfers between
    processes have time-outs of their own, which are shorter and name the rank to blame; this one is for all else: a
    file system that does not answer, a lock, a loading process that waits.

    Setting up does not count, nor does what a callback does between two batches of one process as long as it ends in
    time. A process that is stopped from outside stops its thread as well: the others end by their time-outs.

    Args:
        hang_s: seconds without progress after which the process ends; 0: never.

    Raises:
        ValueError: a negative time.
    """

    def __init__(self, hang_s: float = 1800.0) -> None:
        super().__init__()
        if hang_s < 0:
            raise ValueError(f"Watchdog expects hang_s >= 0 (0: never), got {hang_s}.")
        self.hang_s = hang_s
        self._started_s = time.monotonic()
        self._at_s, self._step, self._doing = 0.0, 0, ""
        self._root = Path()
        self._rank = 0
        self._over: threading.Event | None = None

    def _note(self, trainer: Trainer, doing: str) -> None:
        self._at_s, self._step, self._doing = time.monotonic(), trainer.global_step, doing
        if self._over is None and self.hang_s:
            self._root, self._rank = Path(trainer.default_root_dir), trainer.global_rank
            self._over = threading.Event()
            threading.Thread(target=self._watch, args=(self._over,), daemon=True, name="siglightning-watchdog").start()

    def _stop(self) -> None:
        if self._over is not None:
            self._over.set()
            self._over = None

    def _watch(self, over: threading.Event) -> None:
        while not over.wait(min(_LOOK_EVERY_S, self.hang_s / 4)):
            if time.monotonic() - self._at_s > self.hang_s:
                self._end()

    def _end(self) -> None:
        """Say where it stands, and leave without asking anybody: whatever hangs may hang again."""
        text = (
            f"Rank {self._rank} has stood still for {self.hang_s:g} s at step {self._step}, in {self._doing}. The "
            "newest checkpoint resumes the run; if this was no hang, raise `watchdog.hang_s`."
        )
        path = self._root / f"hang-rank-{self._rank}.txt"
        try:
            with path.open("w") as file:
                print(text, file=file, flush=True)
                faulthandler.dump_traceback(file, all_threads=True)
            if self._rank == 0:
                record = ExitRecord.of(ExitCode.HANG, self._step, time.monotonic() - self._started_s, text)
                record.write(self._root / "exit.json")
        except OSError as error:  # the file system may be what hangs
            os.write(2, f"{path} was not written: {error}\n".encode())
        os.write(2, f"\nerror: {text}\n".encode())
        faulthandler.dump_traceback(sys.__stderr__ or 2, all_threads=True)
        os._exit(int(ExitCode.HANG))

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._note(trainer, "a training step")

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._note(trainer, "what follows a training step, or loading the next batch")

    @override
    def on_validation_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._note(trainer, "what follows a batch of validation")

    @override
    def on_test_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._note(trainer, "what follows a batch of a test")

    @override
    def on_predict_batch_end(self, trainer: Trainer, *_: Any) -> None:
        self._note(trainer, "what follows a batch of predictions")

    @override
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()
