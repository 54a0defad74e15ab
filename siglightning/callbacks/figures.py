"""Writes a run's figures into its directory."""

import re
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger

from siglightning.callbacks.curves import (
    draw_collapse,
    draw_epochs,
    draw_recall,
    draw_scale_and_bias,
    draw_training_curves,
    draw_validation,
)
from siglightning.callbacks.epoch_table import epochs_path
from siglightning.callbacks.grid import draw_retrieval_grid
from siglightning.callbacks.stability_page import draw_stability
from siglightning.evaluation import Evaluation
from siglightning.runtime.files import spared
from siglightning.runtime.metrics_file import read_metrics

_CURVES = {
    "training_curves.png": draw_training_curves,
    "validation_curves.png": draw_validation,
    "scale_and_bias.png": draw_scale_and_bias,
    "stability.png": draw_stability,
    "collapse.png": draw_collapse,
    "recall.png": draw_recall,
}  # each draws what it finds the metrics of, and nothing where it finds none


class FigureWriter(Callback):
    """Draws curves at the end of training and a grid of examples after a test, into ``<run directory>/figures``.

    The run directory is ``trainer.default_root_dir``. Curves come from its ``metrics.csv`` and ``epochs.csv``, so they
    cover a resumed run from its first step. A grid needs examples: the task's ``evaluations``, a dictionary of
    `siglightning.evaluation.Evaluation` by test set. Only the first process draws.
    """

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the curves."""
        if not trainer.is_global_zero:
            return
        metrics = read_metrics(metrics_path(trainer))
        with spared("figures of the training"):
            folder = figure_folder(trainer)
            for name, draw in _CURVES.items():
                draw(metrics, folder / name)
            draw_epochs(read_metrics(epochs_path(trainer), "epoch"), folder / "epochs.png")

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw one grid for each test set that has examples."""
        evaluations: dict[str, Evaluation] = getattr(pl_module, "evaluations", {})
        if not trainer.is_global_zero:
            return
        for name, evaluation in evaluations.items():
            if evaluation.examples:
                path = figure_folder(trainer) / f"retrieval_grid_{file_word(name)}.png"
                draw_retrieval_grid(evaluation.examples, f"{name}: test images and their five best captions", path)


def figure_folder(trainer: Trainer) -> Path:
    """The run's folder of figures, made when missing."""
    folder = Path(trainer.default_root_dir) / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def file_word(name: str) -> str:
    """A set's or a class's name as part of a file's name."""
    return re.sub(r"[^\w.-]+", "_", name)[:60] or "_"


def metrics_path(trainer: Trainer) -> Path:
    """The run's CSV file: flat in the run directory, else where a `CSVLogger` of Lightning put it."""
    flat = Path(trainer.default_root_dir) / "metrics.csv"
    folders = [Path(logger.log_dir) for logger in trainer.loggers if isinstance(logger, CSVLogger)]
    return next((path for path in (flat, *(f / "metrics.csv" for f in folders)) if path.is_file()), flat)
