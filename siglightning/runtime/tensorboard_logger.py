"""TensorBoard as a record of one run that is resumed, and that no failure of the record ends."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from siglightning.runtime.dashboard import DashboardRows, RecordGuard


class RunTensorBoardLogger(TensorBoardLogger):
    """Lightning's logger for TensorBoard with ``examples_seen``, and errors that end nothing.

    TensorBoard's one axis is the step of ``metrics.csv``. When a run resumes, TensorBoard is told to forget what was
    logged after the checkpoint.
    """

    rows: DashboardRows | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._guard = RecordGuard("TensorBoard")

    def take_rows(self, rows: DashboardRows) -> None:
        """Complete rows by these, and begin after their checkpoint."""
        self.rows = rows
        if rows.resume_step is not None:
            self._kwargs["purge_step"] = rows.resume_step

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row."""
        row = dict(metrics) if self.rows is None else self.rows.new(metrics, step)
        with self._guard():
            super().log_metrics(row, step)

    @rank_zero_only
    def log_histogram(self, key: str, counts: Sequence[int], edges: Sequence[float], step: int) -> None:
        """Log counts between edges, of which there is one more."""
        middles = [(low + high) / 2 for low, high in pairwise(edges)]
        pairs = list(zip(counts, middles, strict=True))
        with self._guard():
            self.experiment.add_histogram_raw(
                key,
                min=edges[0],
                max=edges[-1],
                num=sum(counts),
                sum=math.fsum(count * middle for count, middle in pairs),
                sum_squares=math.fsum(count * middle**2 for count, middle in pairs),
                bucket_limits=list(edges[1:]),
                bucket_counts=list(counts),
                global_step=step,
            )

    @override
    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        with self._guard():
            super().log_hyperparams(*args, **kwargs)

    @override
    @rank_zero_only
    def save(self) -> None:
        with self._guard():
            super().save()

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        with self._guard():
            super().finalize(status)
