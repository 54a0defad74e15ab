"""W&B as a record of one run that is resumed, and that no failure of the record ends."""

import os
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor
from typing_extensions import override

from siglightning.runtime.dashboard import EXAMPLES_SEEN, GLOBAL_STEP, DashboardRows, RecordGuard
from siglightning.runtime.processes import notice
from siglightning.runtime.wandb_file import cut_offline_runs, is_whole

_GUARD = RecordGuard("W&B")  # one a process, as W&B's own run is
_DATA_DIR = "WANDB_DATA_DIR"
_folders: set[str] = set()  # that this process has put there: a user's own is kept


class RunWandbLogger(WandbLogger):
    """Lightning's logger for W&B with axes, one run over all starts, and errors that end nothing.

    Every row holds ``global_step``, the default axis of all metrics: it counts optimizer steps, which a resumed run
    goes on with, where W&B's own count of rows begins anew. ``examples_seen`` stands beside it and is an axis, too.

    When a run resumes, rows that an offline run recorded after the checkpoint are cut from its file, as in
    ``metrics.csv``. Rows that are on the server already stay; the resumed run draws over them with equal numbers.

    A first start is refused where W&B cannot begin; from then on its failures are told once and the run goes on.
    """

    rows: DashboardRows | None = None
    takes_pictures = True

    @property
    @override
    @rank_zero_experiment
    def experiment(self) -> Any:
        """The run of W&B; one that records nothing where a resumed start could not open it.

        Raises:
            ValueError: the first start of a run could not open it.
        """
        import wandb

        if self._experiment is None and wandb.run is None and getattr(self, "_attach_id", None) is None:
            self._experiment = self._begin()
        return super().experiment

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, Any], step: int | None = None) -> None:
        """Log a row."""
        row = dict(metrics) if self.rows is None else self.rows.new(metrics, step)
        experiment = self.experiment  # its own errors are not for the guard
        if row:
            with _GUARD():
                experiment.log(row if step is None else {**row, GLOBAL_STEP: step})

    @rank_zero_only
    def log_histogram(self, key: str, counts: Sequence[int], edges: Sequence[float], step: int) -> None:
        """Log counts between edges, of which there is one more."""
        import wandb

        if len(counts) <= wandb.Histogram.MAX_LENGTH:  # it refuses more
            self.log_metrics({key: wandb.Histogram(np_histogram=(list(counts), list(edges)))}, step)

    @override
    @rank_zero_only
    def log_hyperparams(self, params: Any) -> None:
        _ = self.experiment  # its own errors are not for the guard
        with _GUARD():
            super().log_hyperparams(params)

    @override
    @rank_zero_only
    def log_table(
        self,
        key: str,
        columns: list[str] | None = None,
        data: list[list[Any]] | None = None,
        dataframe: Any = None,
        step: int | None = None,
    ) -> None:
        """Log a table, whose cells may be pictures uint8 ``[3, H, W]``."""
        with _GUARD():
            cells = None if data is None else [[_cell(value) for value in row] for row in data]
            super().log_table(key, columns, cells, dataframe, step)

    @override
    @rank_zero_only
    def log_image(self, *args: Any, **kwargs: Any) -> None:
        with _GUARD():
            super().log_image(*args, **kwargs)

    def take_rows(self, rows: DashboardRows) -> None:
        """Complete rows by these, and begin after their checkpoint."""
        self.rows = rows

    def _begin(self) -> Any:
        import wandb

        _GUARD.has_failed = False
        resume_step = None if self.rows is None else self.rows.resume_step
        try:
            folder = Path(self._save_dir or ".") / "wandb"
            _require_room(folder)
            _keep_tables_in(folder)
            if resume_step is not None:
                self._cut(folder, resume_step)
            if self._offline:  # the environment as well, as Lightning does: W&B keeps that of its first use
                os.environ["WANDB_MODE"] = self._wandb_init["mode"] = "offline"
            run = wandb.init(**self._wandb_init)  # like this: the parser of configurations takes arguments from here
        except Exception as error:
            if resume_step is None:
                raise ValueError(
                    f"W&B cannot begin its record: {str(error).rstrip('.')}. Stay offline (`offline: true` of the "
                    "logger), make room for RUN_DIR/wandb, or leave `logger/wandb` out."
                ) from error
            _GUARD.tell(f"it could not go on with it: {error}")
            return wandb.init(mode="disabled")
        run.define_metric(GLOBAL_STEP)
        run.define_metric(EXAMPLES_SEEN, step_metric=GLOBAL_STEP)
        run.define_metric("*", step_metric=GLOBAL_STEP, step_sync=True)
        return run

    def _cut(self, folder: Path, resume_step: int) -> None:
        left = cut_offline_runs(folder, resume_step)
        if left:
            names = ", ".join(path.parent.name for path in left)
            notice(f"W&B has rows after step {resume_step} on its server ({names}); they will be there twice.")


def finish_wandb(code: int) -> None:
    """End the W&B run of this process, so that its file is whole and the next command begins its own.

    A full disk makes W&B lose rows without a word, so that the file is looked at.

    Args:
        code: with which the command ends.
    """
    wandb = sys.modules.get("wandb")
    run = None if wandb is None else getattr(wandb, "run", None)
    if wandb is None or run is None:
        return
    path = None if getattr(run, "disabled", True) else Path(run.settings.sync_file)
    with _GUARD():
        wandb.finish(exit_code=code)
    with _GUARD():
        if path is not None and not (path.exists() and is_whole(path)):
            _GUARD.tell(f"{path} ends before the run does")
    if os.environ.get(_DATA_DIR) in _folders:
        del os.environ[_DATA_DIR]


def _keep_tables_in(folder: Path) -> None:
    """Let tables with their pictures wait in the run's folder; W&B's choice, the home, may go with a container."""
    if os.environ.get(_DATA_DIR, "") in ("", *_folders):
        os.environ[_DATA_DIR] = str(folder)
        _folders.add(str(folder))


def _cell(value: Any) -> Any:
    import wandb

    return wandb.Image(value.permute(1, 2, 0).cpu().numpy()) if isinstance(value, Tensor) else value


def _require_room(folder: Path) -> None:
    """Fail where nothing can be written; W&B would turn to a temporary directory that nobody looks into.

    Raises:
        OSError: as the system says it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder) as file:
        file.write(bytes(4096))
        file.flush()
