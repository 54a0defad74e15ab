"""Accuracy by class: a table for spreadsheets and W&B, and a page that tells where it fails."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from siglightning.callbacks.curves import BLUE, GREY, INK, RED
from siglightning.callbacks.figures import figure_folder, file_word
from siglightning.callbacks.lettering import drawable, fonts, one_line
from siglightning.callbacks.logged_table import csv_text, log_table
from siglightning.evaluation import ClassResult, Evaluation, Predictions, per_class_results
from siglightning.runtime.files import write_text

COLUMNS = ("class", "pictures", "right", "accuracy", "low", "high", "taken for", "times")
_ALL = 40  # up to so many classes all have a bar; of more the worst and the best half of that
_PAIRS = 15  # most frequent mistakes on the page
_LINE, _HEAD, _FOOT, _NAME, _BARS = 0.21, 0.75, 0.55, 2.1, 3.6  # inches
_DPI = 150
_CHARACTERS = 26


class ClassAccuracy(Callback):
    """Writes ``tables/per_class_<set>.csv`` and draws ``figures/per_class_<set>.png`` of each evaluated set.

    It needs the task's ``predictions``, of a classifier or of zero-shot prompts, after a validation by itself or a
    test. Loggers that take tables (W&B) get the table as ``<set>/per_class``. Only the first process writes.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write what `trainer.validate` found."""
        if trainer.state.fn == "validate":
            self._write(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write each test set."""
        self._write(trainer, pl_module)

    def _write(self, trainer: Trainer, module: LightningModule) -> None:
        found: dict[str, Predictions] = getattr(module, "predictions", {})
        evaluations: dict[str, Evaluation] = getattr(module, "evaluations", {})
        if not trainer.is_global_zero:
            return
        for name, predictions in found.items():
            if predictions.labels is None or not len(predictions.ids):
                continue
            results, word = per_class_results(predictions), file_word(name)
            folder = Path(trainer.default_root_dir) / "tables"
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / f"per_class_{word}.csv", as_csv(results))
            title = f"{name}: {_accuracies(evaluations.get(name))}{len(results)} classes"
            draw_class_accuracy(results, title, figure_folder(trainer) / f"per_class_{word}.png")
            log_table(trainer, f"{name}/per_class", COLUMNS, [_row(result) for result in results])


def as_csv(results: Sequence[ClassResult]) -> str:
    """A line of names and one for each class, in their order; empty cells for what is not a number."""
    return csv_text(COLUMNS, [_row(result) for result in results])


def draw_class_accuracy(results: Sequence[ClassResult], title: str, path: Path) -> None:
    """Bars of the classes' accuracies with their intervals, worst first, beside the most frequent mistakes.

    Of more than 40 classes the 20 worst and the 20 best are shown. Classes without pictures have no bar.

    Args:
        results: one a class, of which at least one has pictures.
        title: a line above.
        path: the PNG file to write.
    """
    known = sorted((result for result in results if result.count), key=lambda result: result.accuracy)
    shown = known if len(known) <= _ALL else [*known[: _ALL // 2], *known[-_ALL // 2 :]]
    mistakes = sorted((r for r in results if r.confused_count), key=lambda r: -r.confused_count)[:_PAIRS]
    height = _HEAD + _LINE * max(len(shown), len(mistakes), 6) + _FOOT
    width = 2 * (_NAME + _BARS) + 1.4
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    style: dict[str, Any] = {"fontfamily": list(fonts()), "parse_math": False}
    figure.text(0.012, 1 - 0.16 / height, drawable(title), fontsize=12, fontweight="bold", color=INK, va="top", **style)
    left = _axes(figure, _NAME, len(shown))
    _draw_bars(left, shown, style)
    if len(shown) < len(known):
        left.axhline(len(shown) / 2 - 0.5, color=INK, linewidth=0.8, linestyle="--")
    heading = "accuracy" if len(shown) == len(known) else f"accuracy, the {_ALL // 2} worst and the {_ALL // 2} best"
    left.set_title(heading, loc="left", fontsize=9, color=INK)
    if mistakes:
        right = _axes(figure, 2 * _NAME + _BARS + 1.3, len(mistakes), _BARS - 0.7)
        _draw_mistakes(right, mistakes, style)
    figure.savefig(path)


def _draw_bars(axes: Any, shown: Sequence[ClassResult], style: dict[str, Any]) -> None:
    rows, values = range(len(shown)), [result.accuracy for result in shown]
    # Rounding may put an end of an interval beyond its value.
    ends = [(max(0.0, r.accuracy - r.low), max(0.0, r.high - r.accuracy)) for r in shown]
    axes.barh(rows, values, color=BLUE, alpha=0.75, height=0.72)
    error = tuple(zip(*ends, strict=True))
    axes.errorbar(values, rows, xerr=error, fmt="none", ecolor=INK, elinewidth=0.9, capsize=1.8, capthick=0.9)
    names = [f"{one_line(result.name, _CHARACTERS)} ({result.count:,})" for result in shown]
    axes.set_yticks(rows, names, fontsize=7.5, color=INK, **style)
    axes.set_xlim(0, 1)
    _dress(axes)


def _draw_mistakes(axes: Any, mistakes: Sequence[ClassResult], style: dict[str, Any]) -> None:
    rows, counts = range(len(mistakes)), [result.confused_count for result in mistakes]
    bars = axes.barh(rows, counts, color=RED, alpha=0.75, height=0.72)
    words = [f" {result.confused_count:,} of {result.count:,}" for result in mistakes]
    axes.bar_label(bars, words, fontsize=7, color=GREY)
    half = _CHARACTERS - 6
    names = [f"{one_line(r.name, half)} → {one_line(r.confused_with, half)}" for r in mistakes]
    axes.set_yticks(rows, names, fontsize=7.5, color=INK, **style)
    axes.set_xlim(0, max(counts) * 1.35)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_title("pictures of the most frequent mistakes, true → predicted", loc="left", fontsize=9, color=INK)
    _dress(axes)


def _axes(figure: Figure, left: float, lines: int, length: float = _BARS) -> Any:
    """Axes for so many lines below the title; inches from the left."""
    width, height = figure.get_size_inches()
    inches = _LINE * lines
    axes = figure.add_axes((left / width, 1 - (_HEAD + inches) / height, length / width, inches / height))
    axes.set_ylim(lines - 0.5, -0.5)  # worst on top
    return axes


def _dress(axes: Any) -> None:
    axes.tick_params(axis="x", labelsize=7.5, colors=INK)
    axes.tick_params(axis="y", length=0)
    axes.grid(axis="x", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)


def _accuracies(evaluation: Evaluation | None) -> str:
    """The set's accuracies in words, with a comma behind."""
    metrics = {} if evaluation is None else evaluation.metrics
    names = {"zeroshot_acc": "accuracy", "acc": "accuracy", "zeroshot_class_acc": "mean over classes"}
    found = [f"{word} {metrics[name].value:.1%}" for name, word in names.items() if name in metrics]
    return "".join(f"{words}, " for words in found)


def _row(result: ClassResult) -> list[Any]:
    shares = [None if math.isnan(share) else round(share, 6) for share in (result.accuracy, result.low, result.high)]
    return [result.name, result.count, result.right, *shares, result.confused_with, result.confused_count]
