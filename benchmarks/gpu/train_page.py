"""Page and figure of the trainings, made of the file of results and of nothing else.

python -m benchmarks.gpu.train_page FOLDER     # of gpu_train.json
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.clock import ratio
from benchmarks.gpu.forecast import GIB
from benchmarks.gpu.results import footer, load
from benchmarks.paper.drawing import canvas, label
from siglightning.callbacks.curves import BLUE, ORANGE
from siglightning.callbacks.device_peak import peak_tflops
from siglightning.runtime.files import write_text

TITLE = "# Training two towers on a GPU"
METHOD = """\
Trainings take turns in one process, each time in another order. A turn has {warm_up} steps to warm up and {steps} that
count, from the end of one step to the end of the last, so that everything between two steps counts. Images a second
are medians over turns; ratios are taken within a turn. All train the same model ({model}, pictures of {side} pixels,
{context} tokens), from the same weights where their towers are the same, on the same synthetic batches, which lie in
the host's pinned memory.

*siglightning* is `ContrastiveTask` under the Trainer of `siglightning fit` with the callbacks of every run,
{precision}, {compiled}, fused AdamW and the loss's own choice of a backend. It gets uint8 pictures and normalises them
on the device. *open_clip* is its own `train_one_epoch` with SigLipLoss, {theirs}, and AdamW made fused, for which it
has no flag. It gets normalised pictures, as its loaders give them. Neither clips gradients, though ours looks at their
norm in every step. Both log once in a turn. Which weights decay is each one's own rule; without decay both loops train
the same weights (`tests/benchmarks/test_gpu_train.py`).

MFU is the model's FLOPs over the device's dense peak in bf16, counted as `throughput/mfu` of every run is: forward and
backward passes of both towers as torch's counter has them, and 6 B d for an image's share in the loss of B pairs of d
dimensions; what is computed twice to save memory does not count. Here an image takes {gflop:,.1f} GFLOP at the first
batch size. Memory is the most that a training allocated, weights and optimizer included."""
MARKS = "osD^v"


def peak_flops(run: dict[str, Any]) -> float | None:
    """The device's dense peak in bf16, by its vendor's data sheet; ``None`` for a CPU or one that is not known."""
    peak = peak_tflops(run["device"], "bf16-mixed") if run["kind"] == "cuda" else None
    return None if peak is None else 1e12 * peak


def write_page(folder: Path) -> list[Path]:
    """Write `gpu_train.md` and a figure beside `gpu_train.json`; returns their paths."""
    results = load(folder / "gpu_train.json")
    _draw(results, folder / "gpu_train.png")
    write_text(folder / "gpu_train.md", page(results))
    return [folder / "gpu_train.md", folder / "gpu_train.png"]


def page(results: dict[str, Any]) -> str:
    """The whole page in Markdown."""
    run = results["runs"][-1]
    where = run["device"] if run["kind"] == "cuda" else f"a CPU ({run['cpu']}); nothing here tells of a GPU"
    parts = [TITLE, f"On {where}.", _method(results["cells"][0]), "![images a second and MFU](gpu_train.png)"]
    parts += [_table(cell, peak_flops(run)) for cell in results["cells"]]
    skipped = [f"- batches of {one['batch']:,}: {one['left_out']}" for one in results.get("skipped", [])]
    parts += ["\n".join(["## Left out", "", *skipped])] if skipped else []
    return "\n\n".join([*parts, f"## Runs\n\n{footer(results)}"]) + "\n"


def _method(cell: dict[str, Any]) -> str:
    numbers = {key: cell[key] for key in ("warm_up", "steps", "model", "side", "context", "precision")}
    compiled = "compiled towers" if cell["compiled"] else "towers that are not compiled"
    theirs = "`torch.compile` of the whole model" if cell["compiled"] else "not compiled either"
    return METHOD.format(**numbers, compiled=compiled, theirs=theirs, gflop=cell["flops_per_image"] / 1e9)


def _table(cell: dict[str, Any], peak: float | None) -> str:
    """One batch size: a line a training."""
    name, first = next(((row["name"], row["seconds"]) for row in cell["rows"] if row["seconds"]), ("", []))
    header = ["training", "images/s", "slowest to fastest turn", f"{name} / this", "TFLOP/s", "MFU", "peak GiB"]
    lines = [f"## Batches of {cell['batch']:,}", "", _line(header), f"| --- |{' ---: |' * (len(header) - 1)}"]
    for row in cell["rows"]:
        if not row["seconds"]:
            lines.append(_line([row["name"], row["left_out"] or "-", "", "", "", "", ""]))
            continue
        rates = images_per_s(cell, row)
        flops = median(rates) * cell["flops_per_image"]
        times = f"{ratio(row['seconds'], first):.2f}" if len(row["seconds"]) == len(first) else "-"
        memory = "-" if row["peak_bytes"] is None else f"{row['peak_bytes'] / GIB:,.1f}"
        share = "-" if peak is None else f"{100 * flops / peak:.1f} %"
        spread = f"{min(rates):,.1f} to {max(rates):,.1f}"
        lines.append(
            _line([row["name"], f"{median(rates):,.1f}", spread, times, f"{flops / 1e12:,.1f}", share, memory])
        )
    state = "; ".join(part for part in cell["state"] if part) or "not known"
    return "\n".join([*lines, "", f"Clocks, temperature and power before and after: {state}."])


def images_per_s(cell: dict[str, Any], row: dict[str, Any]) -> list[float]:
    """One number a turn."""
    return [cell["batch"] * cell["steps"] / seconds for seconds in row["seconds"]]


def _draw(results: dict[str, Any], path: Path) -> None:
    """Images a second over the batch, and MFU where the device's peak is known."""
    cells, peak = results["cells"], peak_flops(results["runs"][-1])
    figure, panels = canvas(["Images a second", *(["MFU, %"] if peak else [])], height=3.6)
    names = list(dict.fromkeys(row["name"] for cell in cells for row in cell["rows"]))
    for axes, is_share in zip(panels, (False, True), strict=False):
        for number, name in enumerate(names):
            points = _points(cells, name, peak if is_share else None)
            colour = BLUE if name.startswith("siglightning") else ORANGE
            axes.plot(
                *zip(*points, strict=True), "-", marker=MARKS[number % len(MARKS)], color=colour, label=name
            ) if points else None
        label(axes, "batch", "", doubling=sorted({cell["batch"] for cell in cells}), legend=False)
        axes.margins(y=0.1)
        axes.set_ylim(bottom=0)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    figure.savefig(path)


def _points(cells: Sequence[dict[str, Any]], name: str, peak: float | None) -> list[tuple[int, float]]:
    found = []
    for cell in cells:
        for row in cell["rows"]:
            if row["name"] == name and row["seconds"]:
                rate = median(images_per_s(cell, row))
                found.append((cell["batch"], 100 * rate * cell["flops_per_image"] / peak if peak else rate))
    return found


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    for written in write_page(Path(sys.argv[1])):
        print(written)
