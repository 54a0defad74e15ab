"""The sigmoid loss and its gradients on a GPU, against its matrix products and against others, side by side.

    python -m benchmarks.gpu_loss                                  # 4k to 1M pairs, d = 768, then 512 and 1152, bf16
    python -m benchmarks.gpu_loss --pairs 65536 --dims 768         # one size
    python -m benchmarks.gpu_loss --dims 512 1152 --budget 500     # what is left of the time decides; results are added
    python -m benchmarks.gpu_loss --sweep --pairs 65536            # tile sides and settings of our kernel
    python -m benchmarks.gpu_loss --profile --pairs 65536          # tables and traces of torch.profiler, no results
    python -m benchmarks.gpu_loss --tiny --out DIR                 # a try on a CPU in seconds; its figures mean nothing

Results go to benchmarks/results/gpu_loss.{json,md} and two figures, after each size; a later call adds its sizes to the
same file, or replaces them. Figures of a CPU are never written there. How it is measured stands on the page
(`benchmarks.gpu.loss_page`) and in docs/gpu.md.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.cell import History, Options, Work, expected_seconds, measure_cell
from benchmarks.gpu.clock import Clock, Run
from benchmarks.gpu.contestants import LIMIT, Contestant, chosen, limit
from benchmarks.gpu.graph import check_graph
from benchmarks.gpu.pairs import make_inputs
from benchmarks.gpu.place import choose_device, describe, fail, results_folder, share_memory
from benchmarks.gpu.products import tiles_for
from benchmarks.gpu.results import add_cell, begin, load, save, skip
from benchmarks.gpu.sweep import sweep
from benchmarks.gpu.trace import write_profile

PAIRS = [2**power for power in range(12, 21)]  # 4,096 to 1,048,576
DIMS = [768, 512, 1152]
TINY = {"pairs": [48, 64], "dims": [16]}
GRAPH_PAIRS = 16_384
KEY = ("dtype", "dim", "pairs")  # of a cell


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the arguments ask for."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(arguments)
    try:
        device = choose_device("cpu" if args.tiny else args.device)
        folder, contestants = results_folder(args.out, device.type), chosen(args.contestants)
        share_memory(device)
        clock, description = Clock(device), describe(device, "benchmarks.gpu_loss", arguments)
        if args.profile:
            profile_all(clock, contestants, args, folder)
        elif args.sweep:
            sweep(clock, _works(args), folder / "gpu_loss_sweep.json", description)
        else:
            measure(clock, contestants, args, folder, description)
    except ValueError as error:
        fail(str(error))


def measure(
    clock: Clock, contestants: Sequence[Contestant], args: argparse.Namespace, folder: Path, description: dict[str, Any]
) -> None:
    """All sizes, one after the other, as long as the time lasts; the results are written after each."""
    path = folder / "gpu_loss.json"
    results = begin(load(path), description)
    history: History = {}
    options = Options(args.cell_seconds, args.max_seconds, args.whole_up_to)
    deadline = time.monotonic() + args.budget
    for work in _works(args):
        expected = expected_seconds(work, contestants, history, options)
        left = deadline - time.monotonic()
        if expected > left:
            reason = f"not run: needs {expected:,.0f} s of {left:,.0f} s that are left (forecast)"
            print(f"{work.pairs:,} x {work.dim}: {reason}")
            skip(results, work.record(), reason, KEY)
            continue
        cell = measure_cell(clock, work, contestants, history, options)
        _tell(cell)
        add_cell(results, cell, KEY)
        save(results, path)
    if not results["cells"]:
        raise ValueError(
            f"Expected time for one size at least, got a budget of {args.budget} s. Give more with --budget."
        )
    ours = [contestant for contestant in contestants if contestant.name.startswith("siglightning")]
    graphs = [check_graph(clock, contestant, *_graph_size(args)) for contestant in ours]
    results["graphs"] = graphs or results.get("graphs", [])
    save(results, path)
    from benchmarks.gpu.loss_page import write_page  # late: results come first, whether there is matplotlib or not

    print("\n".join(str(written) for written in [path, *write_page(folder)]))


def profile_all(clock: Clock, contestants: Sequence[Contestant], args: argparse.Namespace, folder: Path) -> None:
    """A table and a trace of every contestant that can run, and of the limit, at each size."""
    for work in _works(args):
        inputs, able = make_inputs(*work, clock.device), [c for c in contestants if c.absent(clock.device) is None]
        tile = tiles_for(work.pairs, work.dtype.itemsize, clock.free_bytes())[-1]
        runs: dict[str, Run] = {LIMIT: partial(limit, inputs, tile)}
        for name, run in (runs | {c.name: partial(c.run, inputs) for c in able}).items():
            stem = f"profile_{name.replace(' ', '_').replace(',', '')}_{work.pairs}x{work.dim}"
            print("\n".join(map(str, write_profile(clock, run, folder, stem))))
            inputs.clear()


def _works(args: argparse.Namespace) -> list[Work]:
    pairs, dims = (
        args.pairs or (TINY["pairs"] if args.tiny else PAIRS),
        args.dims or (TINY["dims"] if args.tiny else DIMS),
    )
    return [Work(n, dim, getattr(torch, args.dtype)) for dim in dims for n in pairs]


def _graph_size(args: argparse.Namespace) -> tuple[int, int, torch.dtype]:
    works = _works(args)
    return min(GRAPH_PAIRS, max(work.pairs for work in works)), works[0].dim, works[0].dtype


def _tell(cell: dict[str, Any]) -> None:
    print(f"{cell['pairs']:,} x {cell['dim']} {cell['dtype']}, {cell['turns']} turns", flush=True)
    for row in cell["rows"]:
        best = f"{min(row['seconds']) * 1e3:,.3f} ms at best" if row["seconds"] else row["left_out"]
        print(f"  {row['name']}: {best}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_loss", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, nargs="+", help="batch sizes")
    parser.add_argument("--dims", type=int, nargs="+", help="widths of the embeddings")
    parser.add_argument("--dtype", choices=["bfloat16", "float16", "float32"], default="bfloat16")
    parser.add_argument("--contestants", nargs="+", default=[], metavar="PART", help="those with PART in their names")
    parser.add_argument("--device", help="cuda or cpu; the GPU where there is one")
    parser.add_argument("--tiny", action="store_true", help="few small pairs on the CPU; needs --out")
    parser.add_argument("--out", type=Path, help="folder of the results, benchmarks/results unless given")
    parser.add_argument("--budget", type=float, default=520.0, help="seconds; sizes that do not fit are not begun")
    parser.add_argument("--cell-seconds", type=float, default=Options().cell_s, help="of the turns at one size")
    parser.add_argument("--max-seconds", type=float, default=Options().max_s, help="that one pass may take")
    parser.add_argument(
        "--whole-up-to", type=int, default=Options().whole_up_to, help="pairs compared in float64 as a whole"
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("--sweep", action="store_true", help="try settings of our kernel instead")
    what.add_argument("--profile", action="store_true", help="write profiles instead")
    return parser


if __name__ == "__main__":
    main()
