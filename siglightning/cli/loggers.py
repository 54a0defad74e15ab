"""Send what the configured loggers write into the run directory."""

import secrets
from typing import Any

from lightning.pytorch.loggers import Logger

from siglightning.runtime.dashboard import DashboardRows
from siglightning.runtime.files import write_text
from siglightning.runtime.metrics_csv import MetricsCsvLogger
from siglightning.runtime.processes import is_first_process
from siglightning.runtime.rundir import RunDir
from siglightning.runtime.tensorboard_logger import RunTensorBoardLogger
from siglightning.runtime.wandb_logger import RunWandbLogger


def redirect_loggers(trainer: Any, run_dir: RunDir) -> None:
    """Point the loggers of a parsed configuration at the run directory, before they are built.

    Lightning's for W&B and TensorBoard become ours, which resume and whose failures end nothing.

    A W&B logger without an id gets the one of the run, made at the first start and kept in ``wandb_id.txt``, so
    that all starts of a run are one run there. TensorBoard gets the same sub-directory in every start.

    Args:
        trainer: the ``trainer`` part of the configuration (changed in place).
        run_dir: the run's directory.
    """
    for spec in _as_list(trainer.logger):
        kind = getattr(spec, "class_path", "").rpartition(".")[2]
        if kind == "WandbLogger":
            spec.class_path = f"{RunWandbLogger.__module__}.{RunWandbLogger.__name__}"
            # Absolute: W&B's service outlives a run within a process, and stays in the directory where it started.
            spec.init_args.save_dir = str(run_dir.root.absolute())
            # The parser fills in null, over Lightning's own "allow": `wandb sync` would put the last start for the run.
            spec.init_args.resume = spec.init_args.get("resume") or "allow"
            if not spec.init_args.id and not spec.init_args.version:
                spec.init_args.id = wandb_run_id(run_dir)
        elif kind == "TensorBoardLogger":
            spec.class_path = f"{RunTensorBoardLogger.__module__}.{RunTensorBoardLogger.__name__}"
            spec.init_args.save_dir = str(run_dir.root)
            spec.init_args.name = "tensorboard"
            spec.init_args.version = ""


def wandb_run_id(run_dir: RunDir) -> str | None:
    """The run's id for W&B, made on first use; ``None`` in processes other than the first, which do not log."""
    if not is_first_process():
        return None
    if not run_dir.wandb_id.exists():
        write_text(run_dir.wandb_id, secrets.token_hex(4) + "\n")
    return run_dir.wandb_id.read_text().strip()


def with_metrics_csv(configured: Any, run_dir: RunDir, resume_step: int | None) -> tuple[list[Logger], DashboardRows]:
    """The configured loggers behind the CSV file, which is always written.

    Args:
        configured: the Trainer's ``logger`` argument: a logger, a list, a bool or ``None``.
        run_dir: the run's directory.
        resume_step: optimizer steps of the checkpoint that the run resumes from, or ``None``.

    Returns:
        The loggers, and what completes their rows; it is to follow the Trainer.
    """
    loggers = [logger for logger in _as_list(configured) if isinstance(logger, Logger)]
    metrics_csv = MetricsCsvLogger(run_dir.metrics, resume_step)
    rows = DashboardRows(metrics_csv, resume_step)
    metrics_csv.complete = rows.complete
    for logger in loggers:
        if isinstance(logger, RunWandbLogger | RunTensorBoardLogger):
            logger.take_rows(rows)
    return [metrics_csv, *loggers], rows


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    return [] if value is None or isinstance(value, bool) else [value]
