"""Reliability diagrams: does what gets 30 % hold in 30 % of the cases?"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from siglightning.callbacks.curves import BLUE, GREY, INK, RED
from siglightning.callbacks.figures import figure_folder
from siglightning.callbacks.lettering import drawable, fonts
from siglightning.evaluation.reliability import ReliabilityBins

_DPI = 150


class ReliabilityFigures(Callback):
    """Draws a reliability diagram of each evaluated set into ``<run directory>/figures``.

    It needs the task's ``reliability``, after a validation by itself or a test: bins by set and activation of a
    multi-label task, by set and kind of a contrastive one. Only the first process draws.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what `trainer.validate` found."""
        if trainer.state.fn == "validate":
            self._draw(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw one figure for each test set."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, module: LightningModule) -> None:
        sets: Mapping[str, Mapping[str, ReliabilityBins]] = getattr(module, "reliability", {})
        if not trainer.is_global_zero:
            return
        for name, bins in sets.items():
            path = figure_folder(trainer) / ("reliability_" + re.sub(r"[^\w.-]+", "_", name) + ".png")
            draw_reliability(bins, f"{name}: stated and observed probability", path)


def draw_reliability(bins: Mapping[str, ReliabilityBins], title: str, path: Path) -> None:
    """One diagram for each activation or kind, with the number of pairs of each bin below it.

    Dots are the share of true pairs in a bin, at the bin's mean probability; on the dashed line both are equal, and
    the lines from there to the dots are the gaps whose weighted mean is the calibration error. On a logarithmic scale
    hollow dots at the bottom are bins without any true pair.

    Args:
        bins: activation or kind -> its bins; at least one.
        title: a line above.
        path: the PNG file to write.
    """
    figure = Figure(figsize=(3.8 * len(bins), 4.9), dpi=_DPI, layout="constrained", facecolor="white")
    family = list(fonts())
    figure.suptitle(drawable(title), x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK, fontfamily=family)
    are_alike = len({of_kind.is_logarithmic for of_kind in bins.values()}) == 1
    alike: Literal["row", "none"] = "row" if are_alike else "none"
    rows = figure.subplots(2, len(bins), squeeze=False, sharex="col", sharey=alike, height_ratios=(3, 1.35))
    for (upper, lower), (name, values) in zip(rows.T, bins.items(), strict=True):
        _draw_rates(upper, values)
        upper.set_title(f"{name}   ECE {_decimal(values.error)}", loc="left", fontsize=10, color=INK)
        _draw_counts(lower, values)
    rows[0, 0].set_ylabel("share that is true", fontsize=9, color=INK)
    rows[1, 0].set_ylabel("pairs", fontsize=9, color=INK)
    figure.savefig(path)


def _decimal(number: float) -> str:
    """Three decimals, or two digits of what would vanish."""
    return f"{number:.3f}" if number == 0 or number >= 0.001 else f"{number:.1e}"


def _draw_rates(axes: Any, bins: ReliabilityBins) -> None:
    filled = bins.counts > 0
    stated, observed = bins.mean_probability[filled].numpy(), bins.positive_rate[filled].numpy()
    low = 0.0
    if bins.is_logarithmic:
        low = min(stated.min(), observed[observed > 0].min(initial=1.0)) / 3
        axes.set(xscale="log", yscale="log")
        none = observed == 0
        axes.plot(stated[none], np.full(none.sum(), 1.5 * low), "o", color=GREY, markersize=4, markerfacecolor="white")
        stated, observed = stated[~none], observed[~none]
    axes.plot([low, 1], [low, 1], color=GREY, linewidth=1, linestyle="--")
    axes.vlines(stated, stated, observed, color=RED, linewidth=2, alpha=0.55)
    axes.plot(stated, observed, color=BLUE, marker="o", markersize=4, linewidth=1.4, clip_on=False)
    axes.set(xlim=(low, 1), ylim=(low, 1))
    _dress(axes)


def _draw_counts(axes: Any, bins: ReliabilityBins) -> None:
    edges, counts = bins.edges.numpy(), bins.counts.numpy()
    bars = axes.bar(edges[:-1], counts, edges[1:] - edges[:-1], align="edge", color="#BFD9EA", edgecolor="white")
    axes.set_yscale("log")
    axes.set_ylim(0.7, (3 if bins.is_logarithmic else 30) * max(counts))  # room for the numbers
    if not bins.is_logarithmic:  # there the bins are too narrow for them
        words = [f"{count:,}" if count else "" for count in counts.tolist()]
        axes.bar_label(bars, words, rotation=90, fontsize=6.5, padding=2, color=INK)
    axes.set_xlabel("stated probability", fontsize=9, color=INK)
    _dress(axes)


def _dress(axes: Any) -> None:
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
