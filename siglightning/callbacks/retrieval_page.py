"""Retrieval of all sets side by side: a table for spreadsheets and W&B, and a page."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from siglightning.callbacks.curves import BLUE, GREEN, GREY, INK, ORANGE
from siglightning.callbacks.figures import figure_folder
from siglightning.callbacks.lettering import drawable, fonts, one_line
from siglightning.callbacks.logged_table import csv_text, log_table
from siglightning.evaluation import Evaluation
from siglightning.runtime.files import write_text

_WAYS = {"t2i": "Text to image", "i2t": "Image to text"}
_KINDS = (*_WAYS, "pair")
_COLOURS = {1: BLUE, 5: GREEN, 10: ORANGE}
_LINE, _HEAD, _FOOT, _NAME, _PANEL = 0.23, 0.8, 0.75, 1.9, 3.6  # inches
_CHARACTERS = 22
_DPI = 150

Sets = Mapping[str, Evaluation]


class RetrievalReport(Callback):
    """Writes ``tables/retrieval.csv`` and draws ``figures/retrieval.png``, one row for each evaluated set.

    It needs the task's ``evaluations``, after a validation by itself or a test, and leaves out those without retrieval.
    Loggers that take tables (W&B) get the table as ``retrieval``. Only the first process writes.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what `trainer.validate` found."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write all test sets."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, module: LightningModule) -> None:
        evaluations: Sets = getattr(module, "evaluations", {})
        sets = {name: found for name, found in evaluations.items() if "t2i_recall@1" in found.metrics}
        if not trainer.is_global_zero or not sets:
            return
        folder = Path(trainer.default_root_dir) / "tables"
        folder.mkdir(parents=True, exist_ok=True)
        columns, rows = as_table(sets)
        write_text(folder / "retrieval.csv", csv_text(columns, rows))
        draw_retrieval(sets, figure_folder(trainer) / "retrieval.png")
        log_table(trainer, "retrieval", columns, rows)


def as_table(sets: Sets) -> tuple[list[str], list[list[str | float | None]]]:
    """Columns and a row for each set: its name, and each metric with its interval and what guessing gives.

    What is not a number is ``None``, and so is what one set has and another has not.
    """
    known = dict.fromkeys(name for found in sets.values() for name in found.metrics if name.partition("_")[0] in _KINDS)
    columns, rows = ["set"], []
    for name in known:
        columns += [name, f"{name}_low", f"{name}_high", f"{name}_chance"]
    for name, found in sets.items():
        row: list[str | float | None] = [name]
        for metric in known:
            value = found.metrics.get(metric)
            row += [None] * 4 if value is None else map(_finite, (value.value, value.low, value.high, value.chance))
        rows.append(row)
    return columns, rows


def draw_retrieval(sets: Sets, path: Path) -> None:
    """Recall at 1, 5 and 10 of each set in both directions, with intervals.

    Args:
        sets: by name, at least one, from top to bottom.
        path: the PNG file to write.
    """
    height = _HEAD + _LINE * len(sets) + _FOOT
    figure = Figure(figsize=(_NAME + 2 * _PANEL, height), dpi=_DPI, facecolor="white")
    width = _NAME + 2 * _PANEL
    family = list(fonts())
    figure.text(0.15 / width, 1 - 0.12 / height, "Retrieval: recall at 1, 5 and 10 with 95 % intervals", va="top",
                fontsize=12, fontweight="bold", color=INK, fontfamily=family)  # fmt: skip
    for number, (way, title) in enumerate(_WAYS.items()):
        left = (_NAME + number * _PANEL) / width
        place = (left, _FOOT / height, (_PANEL - 0.4) / width, _LINE * len(sets) / height)
        axes = figure.add_axes(place)
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        _draw_way(axes, sets, way)
        if number == 0:
            names = [drawable(one_line(name, _CHARACTERS)) for name in sets]
            axes.set_yticks(range(len(sets)), names, fontfamily=family, fontsize=8, color=INK)
            for label, name in zip(axes.get_yticklabels(), sets, strict=True):
                label.set_fontweight("bold" if name == "average" else "normal")
        else:
            axes.set_yticks(range(len(sets)), [])
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncols=len(labels), fontsize=8, frameon=False)
    figure.savefig(path)


def _draw_way(axes: Any, sets: Sets, way: str) -> None:
    for k, colour in _COLOURS.items():
        found = [of_set.metrics.get(f"{way}_recall@{k}") for of_set in sets.values()]
        points = [(row, value) for row, value in enumerate(found) if value is not None]
        rows = [row for row, _ in points]
        axes.hlines(rows, [v.low for _, v in points], [v.high for _, v in points], color=colour, linewidth=2, alpha=0.5)
        axes.plot([v.value for _, v in points], rows, "o", color=colour, markersize=4, label=f"R@{k}", clip_on=False)
        if k == 1:
            chances = [v.chance for _, v in points]
            axes.plot(chances, rows, "|", color=GREY, markersize=8, label="R@1 by chance", clip_on=False)
    axes.set(xlim=(0, 1), ylim=(len(sets) - 0.4, -0.6))
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _finite(number: float) -> float | None:
    return number if math.isfinite(number) else None
