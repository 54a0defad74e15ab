"""Drawings of a run over its steps and epochs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from siglightning.runtime.metrics_file import Series, downsample

# Okabe and Ito's colours, which colour-blind readers tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, INK, GREY = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#D55E00",
    "#CC79A7",
    "#222222",
    "#8A8A8A",
)
PALETTE = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
_MAX_POINTS = 1000
_SMOOTHED_FROM = 100  # points from which a noisy curve is drawn faint, with its running mean on top
_WIDE = 10**2.5  # from this ratio on, a logarithmic axis is marked at powers of ten alone
_DPI = 150

Metrics = Mapping[str, Series]


def draw_training_curves(metrics: Metrics, path: Path) -> bool:
    """Loss (training and validation), learning rate and gradient norm; panels without data are left out.

    Returns:
        Whether there was anything to draw.
    """
    panels = {
        "Loss per image [nats]": {"train/loss": "training", "val/loss": "validation"},
        "Learning rate": _learning_rates(metrics),
        "Gradient norm": {"train/grad_norm": ""},
    }
    return _draw_panels("Training", panels, metrics, path, log={"Gradient norm"})


def draw_scale_and_bias(metrics: Metrics, path: Path) -> bool:
    """The learned temperature t = exp(t'), the bias b, and the mean logits that follow from them."""
    panels = {
        "Logit scale t = exp(t')": {"train/logit_scale": ""},
        "Logit bias b": {"train/logit_bias": ""},
        "Mean logit": {"train/positive_logit": "pairs", "train/negative_logit": "negatives"},
    }
    return _draw_panels("Scale and bias", panels, metrics, path)


def draw_collapse(metrics: Metrics, path: Path) -> bool:
    """Mean cosine and effective rank of the embeddings of training batches, where the task logs them."""
    panels = {
        title: {f"train/{side}_{name}": f"{side}s" for side in ("image", "text")}
        for title, name in (("Mean cosine of different rows", "mean_cosine"), ("Effective rank", "effective_rank"))
    }
    return _draw_panels("Do embeddings tell things apart?", panels, metrics, path)


def draw_recall(metrics: Metrics, path: Path) -> bool:
    """Validation recall at 1, 5 and 10 in both directions."""
    panels = {
        title: {f"val/{way}_recall@{k}": f"R@{k}" for k in (1, 5, 10)}
        for title, way in (("Image to text: recall at k", "i2t"), ("Text to image: recall at k", "t2i"))
    }
    return _draw_panels("Retrieval on the validation set", panels, metrics, path, shares=True)


def draw_validation(metrics: Metrics, path: Path) -> bool:
    """Loss and accuracy of a classifier on the validation set; nothing for a run without an accuracy."""
    if "val/acc" not in metrics:
        return False
    panels = {"Validation loss [nats]": {"val/loss": ""}, "Validation accuracy": {"val/acc": ""}}
    return _draw_panels("Validation", panels, metrics, path)


def draw_epochs(epochs: Metrics, path: Path) -> bool:
    """Loss and accuracy in training and in validation, epoch by epoch; nothing for a run without an accuracy.

    Args:
        epochs: columns of ``epochs.csv`` over the epoch.
        path: the PNG file to write.
    """
    if not epochs.keys() & {"train_acc", "val_acc"}:
        return False
    panels = {
        "Loss [nats]": {"train_loss": "training", "val_loss": "validation"},
        "Accuracy": {"train_acc": "training", "val_acc": "validation"},
    }
    return _draw_panels("Training and validation", panels, epochs, path, over="epoch")


def _learning_rates(metrics: Metrics) -> dict[str, str]:
    """Columns of learning rates, by the names that Lightning's monitor or a task gives them."""
    names = [name for name in metrics if name.startswith("lr-") or name in ("lr", "train/lr")]
    names += [name for name in metrics if name.startswith(("train/lr_", "train/lr/"))]
    distinct: list[str] = []
    for name in sorted(names):
        if not any(np.array_equal(metrics[name].values, metrics[other].values) for other in distinct):
            distinct.append(name)
    if len(distinct) == 1:
        return {distinct[0]: ""}
    return {name: name.removeprefix("train/").removeprefix("lr").lstrip("-_/") or "base" for name in distinct}


def _draw_panels(
    title: str,
    panels: Mapping[str, Mapping[str, str]],
    metrics: Metrics,
    path: Path,
    log: set[str] | None = None,
    shares: bool = False,
    over: str = "step",
) -> bool:
    """One row of panels ``{axis title: {metric: label}}``; writes nothing when no metric exists.

    Shares, which begin at 0 and end at 1 at most, have the same scale in all panels.
    """
    panels = {
        name: {key: label for key, label in curves.items() if key in metrics and is_drawable(metrics[key])}
        for name, curves in panels.items()
    }
    panels = {name: curves for name, curves in panels.items() if curves}
    if not panels:
        return False
    figure = Figure(figsize=(4.6 * len(panels), 3.4), dpi=_DPI, layout="constrained", facecolor="white")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    rows = figure.subplots(1, len(panels), squeeze=False, sharey=shares)
    for axes, (name, curves) in zip(rows[0], panels.items(), strict=True):
        for colour, (key, label) in zip(PALETTE, curves.items(), strict=False):
            draw_curve(axes, metrics[key], label, colour)
        dress(axes, name, over, logarithmic=name in (log or ()))
    if shares:
        rows[0, 0].set_ylim(0, min(1.0, rows[0, 0].get_ylim()[1] * 1.1))
    figure.savefig(path)
    return True


def is_drawable(series: Series) -> bool:
    """Whether there is a finite value."""
    return bool(np.isfinite(series.values).any())


def draw_curve(axes: Any, series: Series, label: str, colour: str) -> None:
    """A metric; a long and noisy one faintly, below its running mean."""
    few = len(series.steps) <= 30
    noisy = len(series.steps) > _SMOOTHED_FROM and _is_noisy(series)
    points = downsample(series, _MAX_POINTS)
    axes.plot(*points, color=colour, alpha=0.25 if noisy else 1.0, linewidth=1.0 if noisy else 1.6,
              marker="o" if few else None, markersize=3.5, label=None if noisy else label)  # fmt: skip
    if noisy:
        axes.plot(points.steps, _running_mean(points.values), color=colour, linewidth=1.8, label=label)


def _is_noisy(series: Series) -> bool:
    """Whether the curve turns at every fifth point or more often."""
    directions = np.sign(np.diff(series.values[np.isfinite(series.values)]))
    turns = int((directions[1:] * directions[:-1] < 0).sum())
    return turns > len(directions) / 5


def _running_mean(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over a window of 5 % of the points, cut off at the ends; NaN are left out."""
    half = max(1, len(values) // 40)
    valid = np.isfinite(values)
    sums = np.concatenate([[0.0], np.cumsum(np.where(valid, values, 0.0))])
    counts = np.concatenate([[0.0], np.cumsum(valid)])
    centre = np.arange(len(values))
    low, high = np.maximum(centre - half, 0), np.minimum(centre + half + 1, len(values))
    number = counts[high] - counts[low]
    means: NDArray[np.float64] = np.divide(
        sums[high] - sums[low], number, out=np.full(len(values), np.nan), where=number > 0
    )
    return means


def dress(axes: Any, title: str, over: str, logarithmic: bool) -> None:
    """Titles, ticks and legend as all figures have them."""
    axes.set_title(title, loc="left", fontsize=10, color=INK)
    axes.set_xlabel(over, fontsize=9, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    if logarithmic:
        axes.set_yscale("log")
        low, high = axes.get_ylim()
        axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < _WIDE * low else (1,)))
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axes.yaxis.set_minor_locator(NullLocator())
    if axes.get_legend_handles_labels()[1] and any(axes.get_legend_handles_labels()[1]):
        axes.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")
