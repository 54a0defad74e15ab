"""One row an epoch: losses, accuracies, time, memory, learning rate and gradient norms."""

import csv
import io
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from siglightning.callbacks.logging_step import is_logging_step
from siglightning.callbacks.memory import peak_bytes
from siglightning.runtime.files import spared, write_text

FILE_NAME = "epochs.csv"
COLUMNS = (
    "epoch",
    "step",
    "train_loss",
    "train_acc",
    "val_loss",
    "val_acc",
    "val_mAP",
    "seconds",
    "peak_memory_mib",
    "lr",
    "grad_norm_mean",
    "grad_norm_max",
)
# column -> the metric that a task logs
_TRAINING = {"train_loss": "train/epoch_loss", "train_acc": "train/epoch_acc"}
_VALIDATION = {"val_loss": "val/loss", "val_acc": "val/acc", "val_mAP": "val/mAP"}

Row = dict[str, float]


@dataclass(frozen=True)
class EpochSoFar:
    """What is known of the epoch under way; part of every checkpoint, so that a resumed epoch is one epoch.

    Attributes:
        seconds: since the end of the epoch before, without the time that a crash threw away.
        peak_mib: most memory so far in the run.
        lr: of the last optimizer step, the highest of all groups.
        norms: number of gradient norms seen.
        norm_sum: their sum.
        norm_max: the largest.
        validation: the last validation's metrics by column.
    """

    seconds: float = 0.0
    peak_mib: float = 0.0
    lr: float | None = None
    norms: int = 0
    norm_sum: float = 0.0
    norm_max: float = 0.0
    validation: dict[str, float] = field(default_factory=dict)

    def as_row(self) -> Row:
        """The row's cells, without the training metrics."""
        row = {"seconds": round(self.seconds, 3), "peak_memory_mib": round(self.peak_mib, 1), **self.validation}
        if self.lr is not None:
            row["lr"] = self.lr
        if self.norms:
            row |= {"grad_norm_mean": self.norm_sum / self.norms, "grad_norm_max": self.norm_max}
        return row


class EpochTable(Callback):
    """Writes ``epochs.csv`` into the run directory, and hands each row to all loggers as ``epoch/<column>``.

    ``epoch`` counts from 1 and ``step`` is the optimizer steps done at its end. Columns that no epoch has are left
    out. Training metrics are ``train/epoch_loss`` and ``train/epoch_acc`` of the task, validation metrics those of the
    last validation within the epoch. ``seconds`` is the time between the ends of two epochs: batches, validation and
    checkpoints. ``peak_memory_mib`` is the run's peak so far, as `MemoryMonitor` measures it on this process. ``lr``
    is that of the last step, highest group. The gradient norms are those logged as ``train/grad_norm`` every
    ``trainer.log_every_n_steps`` steps, before clipping: their mean and maximum over the epoch.

    An epoch that ``max_steps`` cuts short has no row. A resumed run goes on in the same file: rows of epochs that are
    done again are replaced. For an epoch resumed in its middle, seconds and norms cover what came before the checkpoint
    and what came after; the cells of its training metrics stay empty unless the task has ``resumes_epoch_means``, since
    others know the rest only.
    """

    def __init__(self) -> None:
        self._rows: list[Row] = []
        self._so_far = EpochSoFar()
        self._since = 0.0  # perf_counter where the seconds of `_so_far` end
        self._closed: Row | None = None  # an epoch that is over, but for what the task logs at its end
        self._resumed_within = False
        self._logged_step = -1

    def state_dict(self) -> dict[str, Any]:
        """The epoch under way."""
        now = perf_counter()
        return asdict(replace(self._so_far, seconds=self._so_far.seconds + now - self._since))

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the epoch of a checkpoint."""
        self._so_far = EpochSoFar(**state_dict)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep the rows of epochs that will not be done again; the clock starts."""
        self._logged_step, self._closed = -1, None
        self._resumed_within = trainer.fit_loop.epoch_loop.batch_progress.current.ready > 0
        self._rows = [row for row in read_rows(epochs_path(trainer)) if row["step"] <= trainer.global_step]
        self._since = perf_counter()

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the row of the epoch before."""
        self._finish(trainer, pl_module)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finish the last row."""
        self._finish(trainer, pl_module)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """The learning rate, before the schedule changes it."""
        self._so_far = replace(self._so_far, lr=max(float(group["lr"]) for group in optimizer.param_groups))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The gradient norm, where the task logged it."""
        if not is_logging_step(trainer, self._logged_step):
            return
        self._logged_step = trainer.global_step
        logged = trainer.callback_metrics.get("train/grad_norm")
        if logged is not None:
            norm, past = float(logged), self._so_far
            self._so_far = replace(
                past, norms=past.norms + 1, norm_sum=past.norm_sum + norm, norm_max=max(past.norm_max, norm)
            )

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What the validation found."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._so_far = replace(self._so_far, validation=_found(trainer, _VALIDATION))

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Close the row of a whole epoch. Its training metrics follow: a task logs them after the callbacks' turn."""
        if not trainer.fit_loop.epoch_loop.batch_progress.is_last_batch:
            return
        now, past = perf_counter(), self._so_far
        peak_mib = max(past.peak_mib, peak_bytes(pl_module.device) / 2**20)
        whole = replace(past, seconds=past.seconds + now - self._since, peak_mib=peak_mib)
        self._closed = {"epoch": trainer.current_epoch + 1, "step": trainer.global_step, **whole.as_row()}
        self._so_far, self._since = EpochSoFar(peak_mib=peak_mib), now

    def _finish(self, trainer: Trainer, module: LightningModule) -> None:
        row, self._closed = self._closed, None
        if row is None:
            return
        if not self._resumed_within or getattr(module, "resumes_epoch_means", False):
            row |= _found(trainer, _TRAINING)
        self._resumed_within = False
        # A run that resumes at the very end of an epoch ends it once more: the row of the first time is the true one.
        first = [old for old in self._rows if (old["epoch"], old["step"]) == (row["epoch"], row["step"])]
        row |= first[0] if first else {}
        self._rows = [*(old for old in self._rows if old["epoch"] < row["epoch"]), row]
        if trainer.is_global_zero:
            with spared(FILE_NAME):  # the next epoch writes all rows
                write_text(epochs_path(trainer), as_csv(self._rows))
        for logger in trainer.loggers:
            values = {f"epoch/{name}": value for name, value in row.items() if name not in ("epoch", "step")}
            logger.log_metrics(values, step=int(row["step"]) - 1)  # the step of the epoch's last batch, as Lightning's


def epochs_path(trainer: Trainer) -> Path:
    """The run's table of epochs."""
    return Path(trainer.default_root_dir) / FILE_NAME


def read_rows(path: Path) -> list[Row]:
    """The rows of an earlier start; none where there is no file."""
    if not path.is_file():
        return []
    with path.open(newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def as_csv(rows: list[Row]) -> str:
    """The rows with the columns that any of them has."""
    columns = [name for name in COLUMNS if any(name in row for row in rows)]
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _cell(name, value) for name, value in row.items()} for row in rows)
    return text.getvalue()


def _cell(name: str, value: float) -> str:
    return str(int(value)) if name in ("epoch", "step") else repr(float(value))


def _found(trainer: Trainer, names: Mapping[str, str]) -> Row:
    metrics = trainer.callback_metrics
    return {column: float(metrics[name]) for column, name in names.items() if name in metrics}
