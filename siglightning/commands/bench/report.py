"""Results as JSON, as a Markdown table and as two figures."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt


@dataclass(frozen=True)
class Row:
    """One form at one number of ranks and one local batch.

    Attributes:
        form: its name.
        world_size: ranks.
        pairs: local batch of each.
        seconds: median of a forward and a backward pass.
        ratio: median over rounds of its time over our ring's (on one rank: our tiles') within the round; ``None``
            where ours was not measured.
        extra_mib: growth of the resident set over the inputs, of the rank with the largest.
        saved_mib: tensors kept for backward that are not inputs.
        sent_mib: bytes sent by a rank.
        errors: largest error of each gradient against float64, over the gradient's largest entry.
    """

    form: str
    world_size: int
    pairs: int
    seconds: float
    ratio: float | None
    extra_mib: float
    saved_mib: float
    sent_mib: float
    errors: dict[str, float] = field(default_factory=dict)


def as_markdown(rows: Sequence[Row], footer: str) -> str:
    """One table a number of ranks."""
    lines: list[str] = []
    for world_size in sorted({row.world_size for row in rows}):
        ranks = "1 rank" if world_size == 1 else f"{world_size} ranks"
        lines += [f"**{ranks}**", ""]
        lines += ["| form | pairs a rank | seconds | time / ours | extra MiB | kept MiB | sent MiB | worst error |"]
        lines += ["| --- |" + " ---: |" * 7]
        lines += [_line(row) for row in rows if row.world_size == world_size] + [""]
    return "\n".join([*lines, footer, ""])


def _line(row: Row) -> str:
    worst = max(row.errors.values(), default=float("nan"))
    cells = (
        row.form,
        f"{row.pairs:,}",
        f"{row.seconds:.3f}",
        "" if row.ratio is None else f"{row.ratio:.2f}",
        f"{row.extra_mib:,.0f}",
        f"{row.saved_mib:,.1f}",
        f"{row.sent_mib:,.1f}",
        f"{worst:.0e}",
    )
    return f"| {' | '.join(cells)} |"


def as_json(rows: Sequence[Row], record: dict[str, Any]) -> str:
    """Everything, with what is needed to repeat it."""
    return json.dumps({**record, "rows": [asdict(row) for row in rows]}, indent=2) + "\n"


def draw_batches(rows: Sequence[Row], path: Path) -> None:
    """Memory and time over the batch on the fewest ranks, on logarithmic axes."""
    world_size = min(row.world_size for row in rows)
    chosen = [row for row in rows if row.world_size == world_size]
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    for axis, key, label in ((axes[0], "extra_mib", "extra memory, MiB"), (axes[1], "seconds", "seconds a step")):
        _draw(axis, chosen, "pairs", key)
        axis.set(xscale="log", yscale="log", xlabel="pairs a rank", ylabel=label)
        axis.set_xscale("log", base=2)
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"Loss and its gradients on {world_size} rank{'s' if world_size > 1 else ''}")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def draw_ranks(rows: Sequence[Row], path: Path) -> None:
    """Memory and bytes kept for backward over the number of ranks, at the largest local batch."""
    pairs = max(row.pairs for row in rows)
    chosen = [row for row in rows if row.pairs == pairs and row.world_size > 1]
    figure, axes = plt.subplots(1, 2, figsize=(12, 4.6), layout="constrained")
    for axis, key, label in ((axes[0], "extra_mib", "extra memory, MiB"), (axes[1], "saved_mib", "kept, MiB")):
        _draw(axis, chosen, "world_size", key)
        axis.set(xlabel="ranks", ylabel=f"{label} a rank", yscale="log")
        axis.set_xticks(sorted({row.world_size for row in chosen}))
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8, frameon=False)
    figure.suptitle(f"{pairs:,} pairs on each rank")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _draw(axis: Any, rows: Sequence[Row], x: str, y: str) -> None:
    """A line a form: ours drawn through, others dashed; one colour a family."""
    markers = "os^Dv<>P"
    for number, form in enumerate(dict.fromkeys(row.form for row in rows)):
        points = sorted((getattr(row, x), getattr(row, y)) for row in rows if row.form == form)
        colour = "tab:blue" if form.startswith("sigmoid") else "tab:orange"
        style = "-" if "ours" in form else "--"
        axis.plot(
            *zip(*points, strict=True),
            style,
            marker=markers[number % len(markers)],
            color=colour,
            label=form,
            alpha=0.8,
        )
    axis.grid(alpha=0.3)
