"""Where the run stands: a bar on a terminal, a line now and then elsewhere."""

import math
import sys
from time import perf_counter
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn

from siglightning.callbacks.logging_step import is_logging_step
from siglightning.callbacks.throughput import images_in

_REFRESH_S = 0.5


class RunProgressBar(ProgressBar):
    """Steps of the whole run, loss, images per second, and the time left until its last step.

    The loss is that of the last step that loggers saw: reading one waits for the device, for which they do anyway.

    On a terminal it is a bar on standard error. Elsewhere (a log file, a batch job) it is one plain line every
    ``percent_per_line`` percent of the run. Only the first process shows anything.

    Args:
        percent_per_line: percent of the run between two lines where there is no terminal, in (0, 100].
        steps_per_line: steps between two lines when the run has no known end.
        loss_key: the logged metric shown as loss.
        console: where to write; by default standard error.
    """

    def __init__(
        self,
        percent_per_line: float = 5.0,
        steps_per_line: int = 100,
        loss_key: str = "train/loss",
        console: Console | None = None,
    ) -> None:
        super().__init__()
        if not 0 < percent_per_line <= 100 or steps_per_line < 1:
            raise ValueError(
                f"Expected percent_per_line in (0, 100] and steps_per_line of at least 1, got {percent_per_line} and "
                f"{steps_per_line}. Use 5 and 100."
            )
        self.percent_per_line = percent_per_line
        self.steps_per_line = steps_per_line
        self.loss_key = loss_key
        self._console = console
        self._enabled = True
        self._last_time = self._validation_start = 0.0
        self._bar: Progress | None = None
        self._task: TaskID | None = None

    def disable(self) -> None:
        """Show nothing from here on."""
        self._enabled = False
        self._stop()

    def enable(self) -> None:
        """Show again."""
        self._enabled = True

    def print(self, *args: Any, **kwargs: Any) -> None:
        """Print above the bar."""
        if self._enabled:
            self._writer().print(*args, **kwargs)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Begin with the step that the run resumes from."""
        self._total = total_steps(trainer)
        self._first_step = self._last_step = trainer.global_step
        self._start = self._last_time = perf_counter()
        self._num_images, self._loss, self._logged_step = 0, "", -1
        self._line = self._line_number(trainer.global_step)
        self._start_bar("training", self._total, trainer.global_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Show the step, at most twice a second."""
        self._num_images += images_in(batch) * trainer.world_size
        step, now = trainer.global_step, perf_counter()
        if self._enabled and is_logging_step(trainer, self._logged_step):
            self._loss, self._logged_step = self._loss_of(trainer), step
        if not self._enabled or step == self._last_step:
            return
        line = self._line_number(step)
        ended = step == self._total
        due = now - self._last_time >= _REFRESH_S if self._bar else line != self._line
        if due or ended:
            self._show(step, now, trainer)
            self._line, self._last_step, self._last_time, self._num_images = line, step, now, 0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the finished bar on the screen."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give the terminal back, so that the message is not drawn over."""
        self._stop()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say what the run is busy with, and stop the clock of the rate."""
        self._validation_start = perf_counter()
        self._say("validating")

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Back to training."""
        self._last_time += perf_counter() - self._validation_start
        self._say("training")

    def on_test_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show the batches of all test sets."""
        total = sum(trainer.num_test_batches)
        self._start_bar("testing", None if math.isinf(total) else int(total), 0)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """One batch more."""
        if self._bar is not None and self._task is not None:
            self._bar.advance(self._task)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make room for the table."""
        self._stop()

    def _writer(self) -> Console:
        if self._console is None:
            self._console = Console(file=sys.stderr)
        return self._console

    def _start_bar(self, what: str, total: int | None, completed: int) -> None:
        self._stop()
        if not self._enabled or not self._writer().is_terminal:
            return
        columns = (
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=None),
            TextColumn("{task.completed}/{task.total}"),
            TextColumn(" {task.fields[facts]}"),
        )
        self._bar = Progress(*columns, console=self._writer(), expand=True)
        self._task = self._bar.add_task(what, total=total, completed=completed, facts="")
        self._bar.start()

    def _stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None

    def _say(self, what: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=what)

    def _line_number(self, step: int) -> int:
        """Which line the step belongs to where there is no terminal."""
        if self._total is None:
            return step // self.steps_per_line
        return int(100 * step / self._total / self.percent_per_line)

    def _show(self, step: int, now: float, trainer: Trainer) -> None:
        facts = self._facts(step, now, trainer)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=step, facts="  ".join(facts))
            return
        place = f"step {step}" if self._total is None else f"step {step}/{self._total} ({step / self._total:.0%})"
        print("  ".join([place, *facts]), file=self._writer().file, flush=True)

    def _loss_of(self, trainer: Trainer) -> str:
        loss = trainer.callback_metrics.get(self.loss_key)
        return "" if loss is None else f"loss {float(loss):.4f}"

    def _facts(self, step: int, now: float, trainer: Trainer) -> list[str]:
        loss = self._loss or self._loss_of(trainer)  # before the first logged step only a task that logs others has one
        facts = [loss] if loss else []
        facts.append(f"{self._num_images / max(now - self._last_time, 1e-9):,.0f} images/s")
        if self._total is not None:
            # Over the whole run so far, validation and checkpoints included: they will come again.
            seconds_per_step = (now - self._start) / (step - self._first_step)
            facts.append(f"{clock((self._total - step) * seconds_per_step)} left")
        return facts


def total_steps(trainer: Trainer) -> int | None:
    """Optimizer steps of the whole run; ``None`` when neither steps, epochs nor the data set an end."""
    ends = [trainer.max_steps] if trainer.max_steps >= 0 else []
    if trainer.max_epochs is not None and trainer.max_epochs >= 0 and not math.isinf(trainer.num_training_batches):
        steps_per_epoch = math.ceil(trainer.num_training_batches / trainer.accumulate_grad_batches)
        ends.append(steps_per_epoch * trainer.max_epochs)
    return min(ends) if ends and min(ends) > 0 else None


def clock(seconds: float) -> str:
    """Seconds as ``m:ss`` or ``h:mm:ss``."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
