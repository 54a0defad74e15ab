"""What all dashboards of a run are told: rows with their axes, no row twice, and no error that ends the run."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from siglightning.runtime.metrics_csv import MetricsCsvLogger

GLOBAL_STEP = "global_step"
EXAMPLES_SEEN = "examples_seen"


class DashboardRows:
    """Completes the rows that Lightning hands to a run's loggers.

    Beside every row stands ``examples_seen``: optimizer steps done times ``global_batch_size`` times
    ``accumulate_grad_batches``, which is how ``--examples_seen`` counts. It is left out for data without
    ``global_batch_size`` and where nothing is trained.

    A resumed run ends an epoch once more when its checkpoint is of the epoch's last step. What `metrics.csv` holds of
    the steps before the checkpoint is not sent again.

    Args:
        csv: the logger of ``metrics.csv``.
        resume_step: optimizer steps of the checkpoint that the run resumes from, or ``None``.
    """

    def __init__(self, csv: MetricsCsvLogger, resume_step: int | None) -> None:
        self.resume_step = resume_step
        self._csv = csv
        self._trainer: Trainer | None = None

    def follow(self, trainer: Trainer) -> None:
        """Count the examples of this Trainer."""
        self._trainer = trainer

    def complete(self, metrics: Mapping[str, Any]) -> dict[str, Any]:
        """The metrics with the examples seen."""
        trainer = self._trainer
        batch = getattr(getattr(trainer, "datamodule", None), "global_batch_size", None)
        if trainer is None or batch is None or not trainer.global_step:
            return dict(metrics)
        return {**metrics, EXAMPLES_SEEN: trainer.global_step * int(batch) * trainer.accumulate_grad_batches}

    def new(self, metrics: Mapping[str, Any], step: int | None) -> dict[str, Any]:
        """The complete row for a dashboard that keeps all it is sent; nothing where it has all of it already."""
        if self.resume_step is None or step is None or step >= self.resume_step:
            return self.complete(metrics)
        left = {name: value for name, value in metrics.items() if name not in self._csv.kept_columns(step)}
        return self.complete(left) if left else {}


class RecordGuard:
    """Lets a run go on without its dashboard: the first failure of a record is told, none is raised.

    Args:
        name: of the dashboard.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.has_failed = False

    @contextmanager
    def __call__(self) -> Iterator[None]:
        """Run a block whose errors do not matter to training."""
        try:
            yield
        except Exception as error:
            self.tell(f"{type(error).__name__}: {error}")

    def tell(self, reason: str) -> None:
        """Warn, once, that the record has a gap."""
        if self.has_failed:
            return
        self.has_failed = True
        rank_zero_warn(
            f"The record of {self.name} is incomplete ({reason}). The run goes on, and metrics.csv has every number. "
            "Make room for it, or leave its logger out."
        )


def step_of_loggers(trainer: Trainer) -> int:
    """The step under which Lightning hands metrics to its loggers now: of the last batch, counted from 0.

    After training it is the number of steps done, as tests are logged there.
    """
    return int(trainer.fit_loop.epoch_loop._batches_that_stepped)  # no public name; tests compare it with metrics
