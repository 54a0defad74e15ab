"""The table at the end: what was measured, what guessing gives, how sure it is, and where everything lies."""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from rich.console import Console
from rich.table import Table

from siglightning.callbacks.logged_table import csv_text, log_table
from siglightning.evaluation import Evaluation, MetricValue
from siglightning.runtime.files import write_text

COLUMNS = ("set", "metric", *(field.name for field in fields(MetricValue)))
HEADER = ("set", "metric", "value", "chance", "95 % interval", "n")
_LISTED = (
    "metrics.csv",
    "epochs.csv",
    "summary.json",
    "summary.md",
    "summary.csv",
    "calibration.json",
    "config.yaml",
    "tables",
    "samples",
    "checkpoints",
)


class SummaryTable(Callback):
    """Prints the evaluations of a test, and writes ``summary.json``, ``.md`` and ``.csv`` into the run directory.

    The task hands them over as ``evaluations``, by test set. `trainer.validate` prints its table and writes nothing, so
    that it never replaces the result of a test. Loggers that take tables (W&B) get that of either as ``test`` or
    ``validate``, a row for each metric with its interval. After the table come the paths of the run's figures and
    files; they are printed last of all, when other callbacks have written theirs. Only the first process prints.

    Args:
        console: where to print; by default standard output. Without a terminal the table is plain text.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._evaluations: Mapping[str, Evaluation] = {}

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the files."""
        self._evaluations = getattr(pl_module, "evaluations", {})
        if trainer.is_global_zero and self._evaluations:
            folder = Path(trainer.default_root_dir)
            folder.mkdir(parents=True, exist_ok=True)
            write_text(folder / "summary.json", as_json(self._evaluations))
            write_text(folder / "summary.md", as_markdown(self._evaluations))
            write_text(folder / "summary.csv", as_csv(self._evaluations))
            log_table(trainer, "test", COLUMNS, _numbers(self._evaluations))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Keep what `trainer.validate` measured; validation within training is the curves' business."""
        if trainer.state.fn == "validate":
            self._evaluations = getattr(pl_module, "evaluations", {})
            if trainer.is_global_zero and self._evaluations:
                log_table(trainer, "validate", COLUMNS, _numbers(self._evaluations))

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print."""
        if trainer.is_global_zero and self._evaluations:
            console = self._console or Console(file=sys.stdout)
            print_table(self._evaluations, console)
            _print_paths(Path(trainer.default_root_dir), console)
        self._evaluations = {}


def as_json(evaluations: Mapping[str, Evaluation]) -> str:
    """``{set: {metric: {value, chance, low, high, count}}}``, with null for what is not a number."""
    content = {
        name: {metric: _finite(asdict(value)) for metric, value in evaluation.metrics.items()}
        for name, evaluation in evaluations.items()
    }
    return json.dumps(content, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def as_csv(evaluations: Mapping[str, Evaluation]) -> str:
    """A line of names and one for each metric of each set, numbers in full; empty cells for what is not a number."""
    return csv_text(COLUMNS, _numbers(evaluations))


def as_markdown(evaluations: Mapping[str, Evaluation]) -> str:
    """A pipe table."""
    lines = [HEADER, tuple("---" if i < 2 else "---:" for i in range(len(HEADER))), *_rows(evaluations)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def as_plain_text(evaluations: Mapping[str, Evaluation]) -> str:
    """Aligned columns without colours or lines, for log files."""
    lines = [HEADER, *_rows(evaluations)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join(
            cell.ljust(width) if i < 2 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )


def print_table(evaluations: Mapping[str, Evaluation], console: Console) -> None:
    """Print the table: drawn on a terminal, plain elsewhere."""
    if not console.is_terminal:
        print(as_plain_text(evaluations), file=console.file, flush=True)
        return
    table = Table(title="Evaluation", title_justify="left", header_style="bold")
    for index, name in enumerate(HEADER):
        table.add_column(name, justify="left" if index < 2 else "right", no_wrap=True)
    for evaluation in evaluations.values():
        for row in _rows({evaluation.set_name: evaluation}):
            table.add_row(*row)
        table.add_section()
    console.print(table)


def _rows(evaluations: Mapping[str, Evaluation]) -> list[tuple[str, ...]]:
    return [
        (name, metric, *_cells(value))
        for name, evaluation in evaluations.items()
        for metric, value in evaluation.metrics.items()
    ]


def _cells(value: MetricValue) -> tuple[str, str, str, str]:
    interval = "-" if math.isnan(value.low) else f"{_decimal(value.low)} to {_decimal(value.high)}"
    return _decimal(value.value), _decimal(value.chance), interval, f"{value.count:,}"


def _decimal(number: float) -> str:
    """Three decimals, more where they would all be zero."""
    if math.isnan(number):
        return "-"
    return f"{number:.3f}" if number == 0 or abs(number) >= 0.001 else f"{number:.1g}"


def _numbers(evaluations: Mapping[str, Evaluation]) -> list[list[Any]]:
    """Rows under ``COLUMNS``."""
    return [
        [name, metric, *_finite(asdict(value)).values()]
        for name, evaluation in evaluations.items()
        for metric, value in evaluation.metrics.items()
    ]


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {key: number if math.isfinite(number) else None for key, number in values.items()}


def _print_paths(folder: Path, console: Console) -> None:
    found = sorted(folder.glob("figures/*.png")) + [folder / name for name in _LISTED if (folder / name).exists()]
    print(f"\nRun directory: {folder}", file=console.file)
    for path in found:
        print(f"  {path.relative_to(folder)}", file=console.file)
    console.file.flush()
