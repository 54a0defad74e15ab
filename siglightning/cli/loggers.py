"""Send what the configured loggers write into the run directory."""

import secrets
from typing import Any

from lightning.pytorch.loggers import Logger

from siglightning.runtime.files import write_text
from siglightning.runtime.metrics_csv import MetricsCsvLogger
from siglightning.runtime.processes import is_first_process
from siglightning.runtime.rundir import RunDir


def redirect_loggers(trainer: Any, run_dir: RunDir) -> None:
    """Point the loggers of a parsed configuration at the run directory, before they are built.

    A W&B logger without an id gets the one of the run, made at the first start and kept in ``wandb_id.txt``, so
    that all starts of a run are one run there. TensorBoard gets the same sub-directory in every start.

    Args:
        trainer: the ``trainer`` part of the configuration (changed in place).
        run_dir: the run's directory.
    """
    for spec in _as_list(trainer.logger):
        kind = getattr(spec, "class_path", "").rpartition(".")[2]
        if kind == "WandbLogger":
            # Absolute: W&B's service outlives a run within a process, and stays in the directory where it started.
            spec.init_args.save_dir = str(run_dir.root.absolute())
            if not spec.init_args.id and not spec.init_args.version:
                spec.init_args.id = wandb_run_id(run_dir)
        elif kind == "TensorBoardLogger":
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


def with_metrics_csv(configured: Any, run_dir: RunDir, resume_step: int | None) -> list[Logger]:
    """The configured loggers behind the CSV file, which is always written.

    Args:
        configured: the Trainer's ``logger`` argument: a logger, a list, a bool or ``None``.
        run_dir: the run's directory.
        resume_step: optimizer steps of the checkpoint that the run resumes from, or ``None``.
    """
    loggers = [logger for logger in _as_list(configured) if isinstance(logger, Logger)]
    return [MetricsCsvLogger(run_dir.metrics, resume_step), *loggers]


def _as_list(value: Any) -> list[Any]:
    if isinstance(value, list | tuple):
        return list(value)
    return [] if value is None or isinstance(value, bool) else [value]
