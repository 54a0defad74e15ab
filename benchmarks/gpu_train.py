"""Training of two towers on a GPU: images a second and model FLOP utilisation, ours against open_clip's own loop.

    python -m benchmarks.gpu_train                          # ViT-B/16 and B text at 224, batches of 256, 512 and 1024
    python -m benchmarks.gpu_train --batch 512 --names siglightning "open_clip amp_bf16"
    python -m benchmarks.gpu_train --batch 1024 --budget 500    # results are added to those that are there
    python -m benchmarks.gpu_train --profile --batch 512    # tables and traces of torch.profiler, no results
    python -m benchmarks.gpu_train --tiny --out DIR         # a try on a CPU in seconds; its figures mean nothing

Results go to benchmarks/results/gpu_train.{json,md} and a figure, after each batch size. Figures of a CPU are never
written there. How it is measured stands on the page (`benchmarks.gpu.train_page`) and in docs/gpu.md.
"""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.clock import Clock
from benchmarks.gpu.place import choose_device, describe, fail, results_folder, share_memory
from benchmarks.gpu.results import add_cell, begin, load, save, skip
from benchmarks.gpu.train_cell import BY_DEFAULT, NAMES, measure_cell, profile_turns
from benchmarks.gpu.train_page import write_page
from benchmarks.gpu.train_setup import Work

MODEL = "ViT-B-16-SigLIP"
TINY_MODEL = Path(__file__).parent / "gpu" / "tiny_siglip.json"
KEY = ("model", "precision", "compiled", "batch")  # of a cell


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the arguments ask for."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(arguments)
    try:
        device = choose_device("cpu" if args.tiny else args.device)
        folder, clock = results_folder(args.out, device.type), Clock(device)
        share_memory(device)
        if device.type == "cuda":  # as open_clip's main sets it, for all
            torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
        if args.profile:
            for work in _works(args, device):
                print("\n".join(map(str, profile_turns(clock, work, args.names, folder))))
        else:
            measure(clock, args, folder, describe(device, "benchmarks.gpu_train", arguments))
    except ValueError as error:
        fail(str(error))


def measure(clock: Clock, args: argparse.Namespace, folder: Path, description: dict[str, Any]) -> None:
    """All batch sizes, as long as the time lasts; the results are written after each."""
    path = folder / "gpu_train.json"
    results = begin(load(path), description)
    deadline, last = time.monotonic() + args.budget, 0.0
    for work in _works(args, clock.device):
        left = deadline - time.monotonic()
        if left < last or left <= 0:
            reason = f"not run: the size before took {last:,.0f} s, and {left:,.0f} s are left"
            print(f"batch {work.batch:,}: {reason}")
            skip(results, work.record(), reason, KEY)
            continue
        begun = time.monotonic()
        cell = measure_cell(clock, work, args.names, args.turns, args.warm_up, args.steps)
        last = time.monotonic() - begun
        _tell(cell)
        add_cell(results, cell, KEY)
        save(results, path)
    if not results["cells"]:
        raise ValueError(
            f"Expected time for one size at least, got a budget of {args.budget} s. Give more with --budget."
        )
    print("\n".join(str(written) for written in [path, *write_page(folder)]))


def _works(args: argparse.Namespace, device: torch.device) -> list[Work]:
    model = args.model or (str(TINY_MODEL) if args.tiny else MODEL)
    batches = args.batch or ([4] if args.tiny else [256, 512, 1024])
    compiled = args.compile == "yes" if args.compile else not args.tiny
    return [Work(model, batch, args.precision, compiled, device) for batch in batches]


def _tell(cell: dict[str, Any]) -> None:
    print(f"batch {cell['batch']:,}", flush=True)
    for row in cell["rows"]:
        images = cell["batch"] * cell["steps"]
        best = f"{images / min(row['seconds']):,.1f} images/s at best" if row["seconds"] else row["left_out"]
        print(f"  {row['name']}: {best}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--batch", type=int, nargs="+", help="pairs in a step")
    parser.add_argument("--names", nargs="+", choices=NAMES, default=list(BY_DEFAULT), help="who takes part")
    parser.add_argument("--model", help=f"of open_clip, or the path of a config; {MODEL} unless given")
    parser.add_argument("--precision", default="bf16-mixed", help="of ours, as Lightning calls it")
    parser.add_argument("--compile", choices=["yes", "no"], help="use torch.compile; yes, but no with --tiny")
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--steps", type=int, default=20, help="that count in a turn")
    parser.add_argument("--warm-up", type=int, default=4, help="steps of a turn before them")
    parser.add_argument("--device", help="cuda or cpu; the GPU where there is one")
    parser.add_argument("--tiny", action="store_true", help="a small model on the CPU; needs --out")
    parser.add_argument("--out", type=Path, help="folder of the results, benchmarks/results unless given")
    parser.add_argument("--budget", type=float, default=520.0, help="seconds; sizes that do not fit are not begun")
    parser.add_argument("--profile", action="store_true", help="write profiles instead")
    return parser


if __name__ == "__main__":
    main()
