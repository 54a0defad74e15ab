"""Figures of the studies: means over seeds as lines, every seed as a faint point."""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from siglightning.callbacks.curves import BLUE, GREEN, GREY, INK, ORANGE, PURPLE, RED

COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, GREY)
OF_LOSS = {"sigmoid": BLUE, "softmax": ORANGE}
Points = Mapping[Any, Sequence[float]]  # place on the x axis -> one value a seed


def canvas(panels: Sequence[str], height: float = 3.4, width: float = 4.4) -> tuple[Figure, list[Any]]:
    """A figure with a row of titled panels."""
    figure = Figure(figsize=(width * len(panels), height), dpi=150, layout="constrained", facecolor="white")
    rows = figure.subplots(1, len(panels), squeeze=False)[0]
    for axes, title in zip(rows, panels, strict=True):
        axes.set_title(title, loc="left", fontsize=10, color=INK)
        axes.tick_params(labelsize=8, colors=INK)
        axes.grid(color="#E6E6E6", linewidth=0.8)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    return figure, list(rows)


def line(axes: Any, points: Points, label: str, colour: str, style: str = "-", factor: float = 100.0) -> None:
    """Means over seeds at the places that have any, and the seeds themselves."""
    found = {place: [value * factor for value in values] for place, values in points.items() if values}
    axes.plot(
        list(found), [statistics.fmean(v) for v in found.values()], style, color=colour, label=label, linewidth=1.6
    )
    places = [place for place, values in found.items() for _ in values]
    axes.scatter(places, [v for values in found.values() for v in values], s=9, color=colour, alpha=0.45, linewidths=0)


def bars(axes: Any, points: Points, colours: Sequence[str], factor: float = 100.0) -> None:
    """Means as bars from zero, seeds as points."""
    for place, values in enumerate(points.values()):
        if values:
            axes.bar(
                place, statistics.fmean(values) * factor, color=colours[place % len(colours)], alpha=0.75, width=0.65
            )
            axes.scatter([place] * len(values), [v * factor for v in values], s=10, color=INK, zorder=3, linewidths=0)
    axes.set_xticks(range(len(points)), [str(name) for name in points], fontsize=8)
    axes.grid(axis="x", visible=False)


def label(axes: Any, x: str, y: str, doubling: Sequence[int] | None = None, legend: bool = True) -> None:
    """Name the axes; ``doubling`` puts these numbers on a logarithmic x axis."""
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)
    if doubling:
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(doubling), [f"{n // 1024}k" if n >= 1024 and n % 1024 == 0 else str(n) for n in doubling])
    if legend and axes.get_legend_handles_labels()[1]:
        axes.legend(fontsize=8, frameon=True, framealpha=0.85, edgecolor="none")
