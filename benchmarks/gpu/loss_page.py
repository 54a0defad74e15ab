"""Page and figures of the losses, made of the file of results and of nothing else.

python -m benchmarks.gpu.loss_page FOLDER     # of gpu_loss.json
"""

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.gpu.clock import ratio
from benchmarks.gpu.contestants import LIMIT, OURS
from benchmarks.gpu.forecast import GIB
from benchmarks.gpu.pairs import SAMPLED
from benchmarks.gpu.products import product_flops
from benchmarks.gpu.results import footer, load
from benchmarks.paper.drawing import canvas, label
from siglightning.callbacks.curves import BLUE, GREEN, INK, ORANGE, RED
from siglightning.runtime.files import write_text

HEAD = (65_536, 768)  # the size that is told in full
TITLE = "# The sigmoid loss and its gradients on a GPU"
METHOD = """\
Every number is of one forward and one backward pass: the loss and its gradients by images, texts, t' and b. At each
size all contestants take turns in one process, forwards and backwards in order and each time beginning with another,
so that clocks and heat fall on all alike. Times are medians over turns, taken by events of the GPU's stream; ratios
are taken within a turn. Batches take turns, too, where one could stay in the cache. The limit is three bare matrix
products of this size in this dtype by the vendor's library (`torch.mm` and `addmm_` into memory that is there already),
in tiles of whatever size was fastest on the spot. Memory is what the allocator held at most beyond inputs and
gradients. Errors are against float64: of gradients by their norm over a sample of {sampled} rows; of the loss, t' and b
where a pass over all pairs in float64 was made. What would not have fitted, or would have taken too long, by a forecast
from smaller sizes in the same run, was not run and is listed."""
MARKS = "osD^v<>Ph*"
COLOURS = {
    LIMIT: INK,
    "siglightning": BLUE,
    "dense": GREEN,
    "open_clip": ORANGE,
    "siglip-kernel": RED,
}  # of whose names begin so


def write_page(folder: Path) -> list[Path]:
    """Write `gpu_loss.md` and two figures beside `gpu_loss.json`; returns their paths."""
    results = load(folder / "gpu_loss.json")
    cells = [cell for cell in results["cells"] if cell["dtype"] == results["cells"][0]["dtype"]]
    figures = {
        "gpu_loss_time.png": ("Time over the limit", _ratios, "times the limit"),
        "gpu_loss_memory.png": ("Memory", _memory, "GiB beyond inputs and gradients"),
    }
    drawn = [
        name for name, (title, values, unit) in figures.items() if _draw(cells, folder / name, title, values, unit)
    ]
    write_text(folder / "gpu_loss.md", page(results, drawn))
    return [folder / "gpu_loss.md", *(folder / name for name in drawn)]


def page(results: dict[str, Any], figures: Sequence[str]) -> str:
    """The whole page in Markdown."""
    run = results["runs"][-1]
    where = run["device"] if run["kind"] == "cuda" else f"a CPU ({run['cpu']}); nothing here tells of a GPU"
    dtypes = dict.fromkeys(cell["dtype"] for cell in results["cells"])
    parts = [TITLE, f"On {where}.", METHOD.format(sampled=SAMPLED)]
    parts += [f"![{name.removesuffix('.png').replace('_', ' ')}]({name})" for name in figures]
    for dtype in dtypes:
        cells = [cell for cell in results["cells"] if cell["dtype"] == dtype]
        parts += [_head(cells, dtype), _rivals(cells, dtype), *_tables(cells, dtype)]
    parts += [_graphs(results.get("graphs", [])), _left_out(results), f"## Runs\n\n{footer(results)}"]
    return "\n\n".join(part for part in parts if part) + "\n"


def _head(cells: Sequence[dict[str, Any]], dtype: str) -> str:
    """One size in full: the one that is asked about, else the largest that was measured."""
    cell = next((c for c in cells if (c["pairs"], c["dim"]) == HEAD), cells[-1])
    flops = product_flops(cell["pairs"], cell["dim"])
    limit = _row(cell, LIMIT)["seconds"]
    header = ["contestant", "ms", "fastest to slowest", "/ limit", "TFLOP/s", "extra GiB"]
    header += ["error of images", "of texts", "of t'", "of b", "of the loss"]
    lines = [f"## {cell['pairs']:,} pairs of {cell['dim']} dimensions, {dtype}", "", *_table_head(header)]
    for row in cell["rows"]:
        if row["seconds"]:
            middle = median(row["seconds"])
            spread = f"{min(row['seconds']) * 1e3:,.3f} to {max(row['seconds']) * 1e3:,.3f}"
            cells_ = [
                f"{middle * 1e3:,.3f}",
                spread,
                f"{ratio(row['seconds'], limit):.2f}",
                f"{flops / middle / 1e12:,.1f}",
            ]
            lines.append(_line([row["name"], *cells_, _gib(row), *_errors(row["errors"])]))
    lines.append(_line(["rounding of the exact gradients alone", "", "", "", "", "", *_errors(cell["rounding"])]))
    tile = "the whole matrix" if min(cell["limit_tile"]) >= cell["pairs"] else "{:,} x {:,}".format(*cell["limit_tile"])
    state = "; ".join(part for part in cell["state"] if part) or "not known"
    lines += [
        "",
        f"{cell['turns']} turns. The limit's tile: {tile}. Clocks, temperature and power around the turns: {state}.",
    ]
    return "\n".join(lines)


def _rivals(cells: Sequence[dict[str, Any]], dtype: str) -> str:
    """Ours against whoever else was fastest, size by size."""
    header = ["dimensions", "pairs", f"{OURS}, ms", "fastest other", "its ms", "times ours"]
    lines = [f"## Against the fastest other, {dtype}", "", *_table_head(header)]
    empty = len(lines)
    for cell in sorted(cells, key=lambda cell: (cell["dim"], cell["pairs"])):
        ours = _row(cell, OURS)
        others = [
            row for row in cell["rows"] if row["seconds"] and row["name"] != LIMIT and "siglightning" not in row["name"]
        ]
        if ours and ours["seconds"] and others:
            best = min(others, key=lambda row: median(row["seconds"]))
            milliseconds = [f"{median(row['seconds']) * 1e3:,.3f}" for row in (ours, best)]
            times = f"{ratio(best['seconds'], ours['seconds']):.2f}"
            size = [str(cell["dim"]), f"{cell['pairs']:,}"]
            lines.append(_line([*size, milliseconds[0], best["name"], milliseconds[1], times]))
    return "\n".join(lines) if len(lines) > empty else ""


def _tables(cells: Sequence[dict[str, Any]], dtype: str) -> list[str]:
    """For each width: time of the limit and ratios to it, and memory, by the batch."""
    parts = []
    for dim in sorted({cell["dim"] for cell in cells}):
        chosen = [cell for cell in cells if cell["dim"] == dim]
        names = [name for name in _names(chosen) if name != LIMIT]
        time = [
            f"## {dim} dimensions, {dtype}: time",
            "",
            *_table_head(["pairs", "limit, ms", *(f"{n} / limit" for n in names)]),
        ]
        memory = [
            f"## {dim} dimensions, {dtype}: GiB beyond inputs and gradients",
            "",
            *_table_head(["pairs", LIMIT, *names]),
        ]
        for cell in chosen:
            limit = _row(cell, LIMIT)["seconds"]
            rows = [_row(cell, name) for name in names]
            ratios = [f"{ratio(row['seconds'], limit):.2f}" if row and row["seconds"] else "-" for row in rows]
            time.append(_line([f"{cell['pairs']:,}", f"{median(limit) * 1e3:,.3f}", *ratios]))
            memory.append(_line([f"{cell['pairs']:,}", *(_gib(row) for row in (_row(cell, LIMIT), *rows))]))
        parts.append("\n".join(time))
        if any(_memory(cell, name) for cell in chosen for name in _names(chosen)):
            parts.append("\n".join(memory))
    return parts


def _graphs(graphs: Sequence[dict[str, Any]]) -> str:
    lines = []
    for found in graphs:
        size = f"{found['name']}, {found['pairs']:,} pairs of {found['dim']}"
        if found["captured"]:
            equal = "the same bits" if found["equal"] else f"a largest difference of {found['largest_difference']:.1e}"
            times = f"{found['replay_s'] * 1e3:.3f} ms, {found['plain_s'] * 1e3:.3f} ms without"
            lines.append(f"- {size}: captured; replayed over other inputs it gives {equal}; {times}")
        else:
            lines.append(f"- {size}: not captured: {found['reason']}")
    return "\n".join(["## CUDA graphs", "", *lines]) if lines else ""


def _left_out(results: dict[str, Any]) -> str:
    lines = [
        f"- {cell['pairs']:,} x {cell['dim']}, {row['name']}: {row['left_out']}"
        for cell in results["cells"]
        for row in cell["rows"]
        if row["left_out"]
    ]
    lines += [f"- {one['pairs']:,} x {one['dim']}, everything: {one['left_out']}" for one in results.get("skipped", [])]
    return "\n".join(["## Left out", "", *lines]) if lines else ""


def _draw(cells: Sequence[dict[str, Any]], path: Path, title: str, values: Any, unit: str) -> bool:
    """A panel a width, a line a contestant, both axes logarithmic; returns whether there was anything to draw."""
    dims, names = sorted({cell["dim"] for cell in cells}), _names(cells)
    if not any(values(cell, name) for cell in cells for name in names):
        return False
    figure, panels = canvas([f"{title}, d = {dim}" for dim in dims], height=4.2, width=4.6)
    batches = sorted({cell["pairs"] for cell in cells})
    for axes, dim in zip(panels, dims, strict=True):
        for number, name in enumerate(names):
            points = [(c["pairs"], values(c, name)) for c in cells if c["dim"] == dim]
            points = [(pairs, value) for pairs, value in points if value]
            if points:
                axes.plot(*zip(*points, strict=True), label=name, **_style(name, number))
        label(axes, "pairs", unit if dim == dims[0] else "", legend=False)
        axes.set_yscale("log")
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [_short(pairs) for pairs in batches], fontsize=7)
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_formatter("{x:g}") if _is_narrow(axes) else None
        axes.tick_params(axis="y", which="both", labelsize=7)
    handles = {text: handle for axes in panels for handle, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=min(4, max(2, len(dims) + 1)),
        fontsize=8,
        frameon=False,
    )
    figure.savefig(path)
    return True


def _style(name: str, number: int) -> dict[str, Any]:
    """One colour a family; ours and the limit drawn through."""
    colour = next(colour for start, colour in COLOURS.items() if name.startswith(start))
    line = "-" if colour in (BLUE, INK) else "--"
    return {"linestyle": line, "marker": MARKS[number % len(MARKS)], "color": colour, "markersize": 4, "linewidth": 1.3}


def _is_narrow(axes: Any) -> bool:
    """Whether the y axis spans so little that powers of ten alone would leave it without marks."""
    low, high = axes.get_ylim()
    return high < 30 * low


def _ratios(cell: dict[str, Any], name: str) -> float | None:
    row = _row(cell, name)
    return ratio(row["seconds"], _row(cell, LIMIT)["seconds"]) if row and row["seconds"] else None


def _memory(cell: dict[str, Any], name: str) -> float | None:
    row = _row(cell, name)
    return row["extra_bytes"] / GIB if row and row["extra_bytes"] else None


def _names(cells: Iterable[dict[str, Any]]) -> list[str]:
    """Contestants that were measured anywhere, in the order of the results."""
    return list(dict.fromkeys(row["name"] for cell in cells for row in cell["rows"] if row["seconds"]))


def _row(cell: dict[str, Any], name: str) -> Any:
    return next((row for row in cell["rows"] if row["name"] == name), None)


def _gib(row: dict[str, Any] | None) -> str:
    return f"{row['extra_bytes'] / GIB:,.2f}" if row and row["extra_bytes"] is not None else "-"


def _errors(found: dict[str, float]) -> list[str]:
    return [f"{found[key]:.1e}" if key in found else "-" for key in ("images", "texts", "log_scale", "bias", "value")]


def _table_head(names: Sequence[str]) -> list[str]:
    return [_line(names), f"| --- |{' ---: |' * (len(names) - 1)}"]


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _short(pairs: int) -> str:
    """4k, 64k, 1M."""
    for unit, size in (("M", 2**20), ("k", 2**10)):
        if pairs % size == 0:
            return f"{pairs // size}{unit}"
    return str(pairs)


if __name__ == "__main__":
    for written in write_page(Path(sys.argv[1])):
        print(written)
