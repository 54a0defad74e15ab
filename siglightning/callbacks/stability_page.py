"""The course of one run or of several: loss, gradient, update and weights, one above the other."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

from siglightning.callbacks.curves import INK, PALETTE, Metrics, draw_curve, dress, is_drawable

_PANELS = {
    "Loss per image [nats]": "train/loss",
    "Gradient norm": "train/grad_norm",
    "Update norm": "train/update_norm",
    "Norm of the trained weights": "train/param_norm",
}
_DPI = 150


def draw_stability(metrics: Metrics, path: Path) -> bool:
    """One run's page, see :func:`draw_runs`; nothing for a run without a norm of its updates.

    Returns:
        Whether there was anything to draw.
    """
    return "train/update_norm" in metrics and draw_runs({"": metrics}, path)


def draw_runs(runs: Mapping[str, Metrics], path: Path) -> bool:
    """Loss, gradient norm, update norm and weight norm over steps, on logarithmic axes, of runs on top of each other.

    The first three are the SigLIP paper's Figure 5.
    Triangles below the loss are spikes (``train/spikes``), at the logged step that tells of them.

    Args:
        runs: metrics by name of the run, see :func:`siglightning.runtime.metrics_file.read_metrics`.
        path: the PNG file to write.

    Returns:
        Whether there was anything to draw.
    """
    panels = {
        title: key
        for title, key in _PANELS.items()
        if any(key in metrics and is_drawable(metrics[key]) for metrics in runs.values())
    }
    if not panels:
        return False
    figure = Figure(figsize=(7.2, 2.1 * len(panels) + 0.6), dpi=_DPI, layout="constrained", facecolor="white")
    figure.suptitle("Stability", x=0.01, ha="left", fontsize=12, fontweight="bold", color=INK)
    rows = figure.subplots(len(panels), 1, squeeze=False, sharex=True)[:, 0]
    for axes, (title, key) in zip(rows, panels.items(), strict=True):
        for number, (name, metrics) in enumerate(runs.items()):
            if key in metrics:
                label = name if axes is rows[0] else ""  # one legend is enough
                draw_curve(axes, metrics[key], label, PALETTE[number % len(PALETTE)])
        dress(axes, title, "step", logarithmic=True)
        if axes is not rows[-1]:
            axes.set_xlabel("")
    for number, metrics in enumerate(runs.values()):
        steps = spike_steps(metrics)
        if len(steps):  # marks that are none would upset the layout
            # In the axes' own height, lest the marks stretch the scale of the loss.
            heights, place = np.full(len(steps), 0.03 + 0.06 * number), rows[0].get_xaxis_transform()
            rows[0].plot(steps, heights, "^", color=PALETTE[number % len(PALETTE)], markersize=5, transform=place)
    figure.savefig(path)
    return True


def spike_steps(metrics: Metrics) -> NDArray[np.int64]:
    """Logged steps at which the count of spikes had grown."""
    if "train/spikes" not in metrics:
        return np.empty(0, dtype=np.int64)
    series = metrics["train/spikes"]
    steps: NDArray[np.int64] = series.steps[np.diff(series.values, prepend=0.0) > 0]
    return steps
