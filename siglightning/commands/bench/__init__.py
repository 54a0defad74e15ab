"""``siglightning bench loss``: softmax against sigmoid, naive against ours against open_clip's, on this machine."""

import argparse
import json
import os
import re
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from siglightning.runtime.environment import describe_environment
from siglightning.runtime.files import write_text

if TYPE_CHECKING:  # --help answers without torch
    from siglightning.commands.bench.forms import Form

UNITS = {"KIB": 2**-10, "MIB": 1.0, "GIB": 2**10, "KB": 1e3 / 2**20, "MB": 1e6 / 2**20, "GB": 1e9 / 2**20}


def main(arguments: Sequence[str]) -> int:
    """Measure what the arguments ask for, print a table, and write JSON, Markdown and figures.

    Returns:
        0; a wrong argument ends the process with 2.
    """
    parser = _parser()
    options = parser.parse_args(arguments)
    from siglightning.commands.bench.forms import forms

    if not _chosen(forms(), options):
        parser.error(f"no form has {options.forms} in its name; there are: {'; '.join(forms())}")
    if not Path("/proc/self/clear_refs").exists():
        parser.error("memory is read from /proc, which only Linux has")
    record = _record(arguments)
    footer = f"`{record['command']}`; {record['versions']}; {record['hardware']}; {record['date']}"
    out = Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    if options.find_max_batch:
        _search(options, out, record, footer)
    else:
        _compare(options, out, record, footer)
    return 0


def _compare(options: argparse.Namespace, out: Path, record: dict[str, Any], footer: str) -> None:
    from siglightning.commands.bench.report import as_json, as_markdown, draw_batches, draw_ranks

    rows = [row for ranks in options.ranks for pairs in options.batch for row in _rows(ranks, pairs, options)]
    if not rows:
        raise ValueError(f"None of the forms with {options.forms} in their names runs on {options.ranks} ranks.")
    table = as_markdown(rows, footer)
    print(table)
    write_text(out / "loss.md", table)
    write_text(out / "loss.json", as_json(rows, record))
    if len(options.batch) > 1:
        draw_batches(rows, out / "loss_over_batch.png")
    if len([ranks for ranks in options.ranks if ranks > 1]) > 1:
        draw_ranks(rows, out / "loss_over_ranks.png")
    print(f"Written to {out}")


def _rows(world_size: int, pairs: int, options: argparse.Namespace) -> list[Any]:
    from siglightning.commands.bench.forms import forms
    from siglightning.commands.bench.measure import Workload, errors, memory, ratios, times
    from siglightning.commands.bench.report import Row

    names = [name for name in _chosen(forms(), options) if forms()[name].runs_on(world_size)]
    names = [name for name in names if pairs <= options.max_naive or "ours" in name]
    print(f"{world_size} rank(s) x {pairs} pairs: {len(names)} forms ...", flush=True)
    if not names:
        return []
    work = Workload(world_size, pairs, options.dim, options.threads or max(1, _cores() // world_size))
    seconds = times(names, work, options.rounds)
    ours = "sigmoid, tiled (ours)" if world_size == 1 else "sigmoid, ring (ours)"
    relative = ratios(seconds, ours) if ours in names else dict.fromkeys(names)
    wrong = errors(names, work)
    return [
        Row(name, world_size, pairs, median(seconds[name]), relative[name], *memory(name, work), wrong[name])
        for name in names
    ]


def _search(options: argparse.Namespace, out: Path, record: dict[str, Any], footer: str) -> None:
    from siglightning.commands.bench.forms import forms
    from siglightning.commands.bench.search import as_markdown, largest_batches

    limit, threads = mebibytes(options.memory), options.threads or _cores()
    names, found = [name for name, form in _chosen(forms(), options).items() if form.on_one], []
    for row in largest_batches(names, limit, options.max_batch, options.dim, threads):
        print(f"{row.form}, {'towers' if row.with_towers else 'loss alone'}: {row.pairs} ({row.reason})", flush=True)
        found.append(row)
    remark = (
        "The next power of two was too large where no `at least` stands. Naive forms hold the matrix of logits several "
        "times over, the sigmoid as well as the softmax; what changes the largest batch is to form gradients tile by "
        "tile, which works for both."
    )
    table = "\n\n".join([as_markdown(found, options.memory), remark, footer]) + "\n"
    print(table)
    write_text(out / "max_batch.md", table)
    write_text(out / "max_batch.json", json.dumps({**record, "rows": [asdict(row) for row in found]}, indent=2) + "\n")


def _chosen(known: dict[str, "Form"], options: argparse.Namespace) -> dict[str, "Form"]:
    return {name: form for name, form in known.items() if any(part in name for part in options.forms)}


def mebibytes(text: str) -> float:
    """Parse ``2GiB``, ``500 MB`` and the like.

    Raises:
        argparse.ArgumentTypeError: it is something else.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMG]i?B)\s*", text, re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a size such as 2GiB or 500MiB, got {text!r}")
    return float(match[1]) * UNITS[match[2].upper()]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="siglightning bench",
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("what", choices=["loss"], help="what to measure")
    parser.add_argument("--batch", type=_positive, nargs="+", default=[512, 1024, 2048], help="pairs on each rank")
    parser.add_argument("--ranks", type=_positive, nargs="+", default=[1, 2, 4], help="numbers of local processes")
    parser.add_argument("--dim", type=_positive, default=512, help="width of the embeddings")
    parser.add_argument("--rounds", type=_positive, default=5, help="timed rounds; the forms take turns within each")
    parser.add_argument("--threads", type=_positive, help="of torch on each rank; all cores, shared, unless given")
    parser.add_argument("--forms", nargs="+", default=[""], help="only forms with one of these in their names")
    parser.add_argument("--max-naive", type=_positive, default=8192, help="largest batch for forms other than ours")
    parser.add_argument("--find-max-batch", action="store_true", help="search the largest batch instead")
    parser.add_argument("--memory", default="2GiB", type=_size, help="for --find-max-batch")
    parser.add_argument("--max-batch", type=_positive, default=32768, help="for --find-max-batch: where to stop")
    parser.add_argument("--out", default="bench", help="directory for JSON, Markdown and figures")
    return parser


def _positive(text: str) -> int:
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def _size(text: str) -> str:
    mebibytes(text)
    return text


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _record(arguments: Sequence[str]) -> dict[str, Any]:
    hardware = describe_environment(1, [])["hardware"]
    return {
        "command": f"siglightning bench {shlex.join(arguments)}",
        "versions": ", ".join(_versions(("siglightning", "torch", "open_clip_torch"))),
        "hardware": f"{hardware['cpu']}, {hardware['usable_cores']} cores",
        "date": time.strftime("%Y-%m-%d"),
    }


def _versions(names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        try:
            found.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            continue
    return found
