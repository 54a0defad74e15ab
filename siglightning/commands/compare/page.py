"""A page for browsers that needs nothing else: the table and the runs' curves, one over the other."""

from collections.abc import Sequence
from html import escape

import numpy as np
from numpy.typing import NDArray

from siglightning.commands.compare.plot import Curve, draw_plot
from siglightning.commands.compare.runs import Run
from siglightning.commands.compare.table import Table
from siglightning.runtime.metrics_file import Series, downsample

_MAX_POINTS = 240
_HUES = 8  # colours in the style sheet; further runs begin again, with dashed lines
# title -> names of the metric, of which a run's first counts
_PLOTS = {
    "Training loss": ("train/loss",),
    "Validation loss": ("val/loss",),
    "Validation accuracy": ("val/acc", "val/zeroshot_acc"),
    "Learning rate": ("train/lr", "epoch/lr"),
    "Gradient norm": ("train/grad_norm",),
    "Update norm": ("train/update_norm",),
    "Spikes of the training loss": ("train/spikes",),
}
# Okabe and Ito's colours, darkened or lightened until they stand out from the background.
_STYLE = """
:root { color-scheme: light dark; --ink: #1f2328; --soft: #59636e; --line: #d8dee4; --paper: #ffffff; --band: #f6f8fa;
  --c0: #0072b2; --c1: #c25700; --c2: #007a5a; --c3: #a8457f; --c4: #7a6a00; --c5: #2f8fc0; --c6: #5b5fc7;
  --c7: #6e7781; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --soft: #9da7b1; --line: #373e47; --paper: #0f141a;
  --band: #171d25; --c0: #58a6ff; --c1: #ff9b57; --c2: #3fd09c; --c3: #e58bc0; --c4: #e3d04f; --c5: #8bd3f7;
  --c6: #a5a8ff; --c7: #b1bac4; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); margin: 0 auto; padding: 24px;
  max-width: 1240px; }
h1 { font-size: 22px; margin: 0 0 16px; } h2 { font-size: 16px; margin: 28px 0 8px; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 14px; }
th, td { padding: 6px 12px; border-bottom: 1px solid var(--line); text-align: right; white-space: nowrap; }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; white-space: normal; }
th:first-child, td:first-child { text-align: left; } td:first-child { font-weight: 600; }
tbody tr:nth-child(odd) { background: var(--band); } .absent { color: var(--soft); cursor: help; }
.key { display: inline-block; width: 22px; height: 0; border-top: 3px solid; vertical-align: middle;
  margin-right: 8px; }
.dashed { border-top-style: dashed; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(330px, 1fr)); gap: 20px; }
figure { margin: 0; max-width: 560px; } figcaption { font-weight: 600; font-size: 14px; margin-bottom: 4px; }
svg { width: 100%; height: auto; display: block; } svg text { fill: var(--soft); font: 11px system-ui, sans-serif; }
svg .grid { stroke: var(--line); stroke-width: 1; } svg .curve { fill: none; stroke-width: 2; }
ul { color: var(--soft); font-size: 13px; padding-left: 18px; }
"""


def as_html(table: Table, runs: Sequence[Run]) -> str:
    """The whole page; it loads nothing, and follows the reader's choice of a light or dark background.

    Args:
        table: of the runs.
        runs: in the order of the table's rows.
    """
    by_epoch = all(_steps_per_epoch(run) is not None for run in runs)
    plots = "".join(_figure(title, names, runs, by_epoch) for title, names in _PLOTS.items())
    meanings = "".join(f"<li>{escape(meaning)}</li>" for meaning in table.meanings)
    notes = "".join(f"<li>{escape(note)}</li>" for note in table.notes)
    empty = f"<h2>Empty cells</h2><ul>{notes}</ul>" if notes else ""
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Comparison of runs</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><h1>Comparison of {len(runs)} runs</h1>"
        f'<div class="scroll">{_table(table)}</div><h2>Curves</h2><div class="plots">{plots}</div>'
        f"<h2>What the columns mean</h2><ul>{meanings}</ul>{empty}</body></html>\n"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th>{escape(title)}</th>" for title in ("run", *(column.title for column in table.columns)))
    rows = []
    for number, (name, cells) in enumerate(table.rows):
        dashed = " dashed" if number >= _HUES else ""
        key = f'<span class="key{dashed}" style="border-color: {_colour(number)}"></span>'
        texts = "".join(
            f"<td>{escape(cell.text)}</td>"
            if cell.value is not None
            else f'<td class="absent" title="{escape(cell.reason)}">{cell.text}</td>'
            for cell in cells
        )
        rows.append(f"<tr><td>{key}{escape(name)}</td>{texts}</tr>")
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"


def _figure(title: str, names: Sequence[str], runs: Sequence[Run], by_epoch: bool) -> str:
    """One plot; nothing where no run has the metric."""
    curves = []
    for number, run in enumerate(runs):
        series = next((run.metrics[name] for name in names if name in run.metrics), None)
        if series is not None and np.isfinite(series.values).any():
            points = downsample(series, _MAX_POINTS)
            place = _places(run, points, by_epoch)
            curves.append(Curve(run.name, place, points.values, _colour(number), number >= _HUES))
    if not curves:
        return ""
    plot = draw_plot(curves, "epoch" if by_epoch else "step")
    return f"<figure><figcaption>{escape(title)}</figcaption>{plot}</figure>"


def _places(run: Run, series: Series, by_epoch: bool) -> NDArray[np.float64]:
    """Epochs, or steps where a run has no table of epochs: runs with other batches then share an axis."""
    steps = series.steps.astype(np.float64) + 1  # loggers count from 0
    return steps / (_steps_per_epoch(run) or 1.0) if by_epoch else steps


def _steps_per_epoch(run: Run) -> float | None:
    ends = run.epochs.get("step")
    return None if ends is None else float(ends.values[-1] / ends.steps[-1])


def _colour(number: int) -> str:
    return f"var(--c{number % _HUES})"
