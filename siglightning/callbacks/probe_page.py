"""Few-shot accuracy and the linear probe of each evaluated set, on one page."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from siglightning.callbacks.curves import BLUE, GREEN, GREY, INK, ORANGE, PURPLE
from siglightning.callbacks.lettering import drawable, fonts, one_line
from siglightning.evaluation import Evaluation, MetricValue

_FEW_SHOT = "fewshot@"
_LINES = {"probe_acc": ("linear probe", ORANGE), "zeroshot_acc": ("zero-shot", GREEN), "acc": ("classifier", PURPLE)}
_IN_A_ROW, _WIDTH, _HEIGHT, _HEAD, _FOOT = 3, 3.6, 2.6, 0.4, 0.55  # inches
_DPI = 150
_CHARACTERS = 34


def draw_probes(sets: Mapping[str, Evaluation], path: Path) -> None:
    """Accuracy over the number of pictures of each class that were learnt from, a panel for each set.

    Across a panel go the linear probe, which learns from all of them, and what the model says without learning:
    zero-shot, or its own classifier. The dotted line is chance.

    Args:
        sets: by name, at least one, with metrics ``fewshot@k`` or ``probe_acc``.
        path: the PNG file to write.
    """
    columns = min(len(sets), _IN_A_ROW)
    rows = -(-len(sets) // columns)
    width, height = _WIDTH * columns + 0.3, _HEIGHT * rows + _HEAD + _FOOT
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    style: dict[str, Any] = {"fontfamily": list(fonts()), "parse_math": False}
    figure.text(0.15 / width, 1 - 0.14 / height, "Probes: accuracy, 95 % intervals", va="top", fontsize=12,
                fontweight="bold", color=INK, **style)  # fmt: skip
    shown: dict[str, Any] = {}
    for number, (name, found) in enumerate(sets.items()):
        row, column = divmod(number, columns)
        left, low = 0.6 + _WIDTH * column, _FOOT + 0.45 + _HEIGHT * (rows - 1 - row)
        axes = figure.add_axes((left / width, low / height, (_WIDTH - 0.55) / width, (_HEIGHT - 0.8) / height))
        axes.set_title(drawable(one_line(name, _CHARACTERS)), loc="left", fontsize=10, color=INK, **style)
        _draw_set(axes, found.metrics)
        shown |= dict(zip(*axes.get_legend_handles_labels()[::-1], strict=True))
    order = [name for name in ("few-shot", *(label for label, _ in _LINES.values()), "chance") if name in shown]
    figure.legend([shown[name] for name in order], order, loc="lower center", ncols=3 if columns == 1 else len(order),
                  fontsize=8, frameon=False)  # fmt: skip
    figure.savefig(path)


def _draw_set(axes: Any, metrics: Mapping[str, MetricValue]) -> None:
    shots = {int(key.removeprefix(_FEW_SHOT)): value for key, value in metrics.items() if key.startswith(_FEW_SHOT)}
    places, values = range(len(shots)), list(shots.values())
    # Rounding may put an end of an interval beyond its value.
    ends = [[max(0.0, v.value - v.low) for v in values], [max(0.0, v.high - v.value) for v in values]]
    if shots:
        axes.errorbar(places, [v.value for v in values], yerr=ends, color=BLUE, marker="o", markersize=4, capsize=2.5,
                      linewidth=1.4, elinewidth=1, label="few-shot", clip_on=False)  # fmt: skip
    for key, (label, colour) in _LINES.items():
        if key in metrics:
            axes.axhspan(metrics[key].low, metrics[key].high, color=colour, alpha=0.15, linewidth=0)
            axes.axhline(metrics[key].value, color=colour, linewidth=1.4, label=label)
    chance = next(value.chance for key, value in metrics.items() if key.startswith((_FEW_SHOT, "probe_acc")))
    axes.axhline(chance, color=GREY, linewidth=1.2, linestyle=":", label="chance")
    axes.set_xticks(places, [str(count) for count in shots])
    axes.set(xlim=(-0.4, max(len(shots), 1) - 0.6), ylim=(0, 1))
    axes.set_xlabel("training pictures of each class" if shots else "", fontsize=8, color=INK)
    axes.tick_params(labelsize=8, colors=INK)
    axes.grid(axis="y", color="#E6E6E6", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
