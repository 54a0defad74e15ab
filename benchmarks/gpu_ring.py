"""How much of the ring's transfers hides behind compute, on several GPUs.

    torchrun --nproc-per-node 8 -m benchmarks.gpu_ring                    # 8,192 pairs a GPU, d = 768, bf16
    torchrun --nproc-per-node 8 -m benchmarks.gpu_ring --pairs 2048 8192 --dims 768 1152
    torchrun --nproc-per-node 8 -m benchmarks.gpu_ring --profile --out DIR # a trace of rank 0: NCCL beside the kernels
    torchrun --nproc-per-node 3 -m benchmarks.gpu_ring --tiny --out DIR    # gloo and the CPU: a try of the script

In turns: a step with the ring, with gradients under way in bf16, and with gathering; the same tiles without anybody to
talk to; and the ring's messages alone, one after the other. What a step takes beyond its compute was not hidden. All
figures are those of the slowest rank. Results: benchmarks/results/gpu_ring.json, never from a CPU.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from datetime import timedelta
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from benchmarks.gpu.clock import Clock, Run, rotated
from benchmarks.gpu.place import describe, fail, results_folder
from benchmarks.gpu.results import add_cell, begin, load, save
from benchmarks.gpu.trace import write_profile
from siglightning.distributed.ring import Ring
from siglightning.losses import sigmoid_loss

KEY = ("ranks", "dtype", "dim", "pairs")
TURNS = 12
STEPS: dict[str, dict[str, Any]] = {
    "ring": {},
    "ring, gradients in bf16": {"accumulators": "bf16"},
    "gather": {"comm": "gather"},
}
COMPUTE, TRANSFERS = "compute alone", "the ring's transfers alone"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure what the arguments ask for, as one rank of torchrun's."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    args = _parser().parse_args(arguments)
    if "RANK" not in os.environ:
        fail("Expected to be started by torchrun, got one process. Use `torchrun --nproc-per-node N -m ...`.")
    device = torch.device("cpu" if args.tiny else f"cuda:{os.environ['LOCAL_RANK']}")
    if not args.tiny:
        if not torch.cuda.is_available():
            fail("Expected a GPU for each process, got none. Use --tiny --out DIR to try the script.")
        torch.cuda.set_device(device)
    try:
        folder = results_folder(args.out, device.type)
    except ValueError as error:
        fail(str(error))
    backend = "gloo" if args.tiny else "nccl"
    dist.init_process_group(backend, timeout=timedelta(seconds=300), device_id=None if args.tiny else device)
    try:
        _measure_all(Clock(device), args, folder, describe(device, "benchmarks.gpu_ring", arguments))
    finally:
        dist.destroy_process_group()


def _measure_all(clock: Clock, args: argparse.Namespace, folder: Path, description: dict[str, Any]) -> None:
    pairs, dims = (args.pairs or ([96] if args.tiny else [8192])), (args.dims or ([16] if args.tiny else [768]))
    dtype, path = torch.float32 if args.tiny else torch.bfloat16, folder / "gpu_ring.json"
    results = begin(load(path), description) if dist.get_rank() == 0 else {}
    for count, dim in product(pairs, dims):
        runs = contestants(count, dim, dtype, clock.device)
        if args.profile:
            if dist.get_rank() == 0:
                print("\n".join(map(str, write_profile(clock, runs["ring"], folder, f"profile_ring_{count}x{dim}"))))
            else:
                for _ in range(4):  # as often as the profiled rank
                    runs["ring"]()
            continue
        cell = {"ranks": dist.get_world_size(), "dtype": str(dtype)[6:], "dim": dim, "pairs": count}
        cell |= summary(seconds_of_slowest(clock, runs))
        if dist.get_rank() == 0:
            add_cell(results, cell, KEY)
            save(results, path)
            _tell(cell)


def contestants(pairs: int, dim: int, dtype: torch.dtype, device: torch.device) -> dict[str, Run]:
    """Steps, their compute and their transfers, each over the world group with ``pairs`` pairs a rank."""
    group, size = dist.new_group(timeout=timedelta(seconds=300)), dist.get_world_size()
    generator = torch.Generator(device).manual_seed(dist.get_rank())
    x, y = (
        functional.normalize(torch.randn(pairs, dim, generator=generator, device=device), dim=1).to(dtype)
        for _ in range(2)
    )
    scalars = [torch.tensor([value], device=device) for value in (2.3, -10.0)]
    groups = {name: dist.new_group(timeout=timedelta(seconds=300)) for name in STEPS}

    def step(name: str) -> None:
        _pass(x, y, scalars, group=groups[name], **STEPS[name])

    def compute() -> None:
        for _ in range(size):
            _pass(x, y, scalars)

    def transfers() -> None:
        ring, gradient = Ring.of(group), torch.zeros(pairs, dim, device=device)
        for block in [y] * (size - 1) + [gradient] * size:
            ring.shift((block,), (torch.empty_like(block),)).wait()

    return {name: (lambda name=name: step(name)) for name in STEPS} | {COMPUTE: compute, TRANSFERS: transfers}


def _pass(x: Tensor, y: Tensor, scalars: Sequence[Tensor], **options: Any) -> None:
    leaves = [x.detach().requires_grad_(), y.detach().requires_grad_()]
    sigmoid_loss(*leaves, *scalars, **options).backward()


def seconds_of_slowest(clock: Clock, runs: dict[str, Run], turns: int = TURNS) -> dict[str, list[float]]:
    """Seconds of each, turn by turn, after one turn to warm up: what the slowest rank took."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(turns + 1):
        for name in rotated(list(runs), turn):
            dist.barrier()
            slowest = torch.tensor([clock.seconds(runs[name])], dtype=torch.float64, device=clock.device)
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            seconds[name].append(slowest.item())
    return {name: values[1:] for name, values in seconds.items()}


def summary(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Medians over turns, and of each step the seconds that were not hidden and the share of transfers that was."""
    rows = []
    for name in STEPS:
        exposed = [own - alone for own, alone in zip(seconds[name], seconds[COMPUTE], strict=True)]
        ratios = [own / alone for own, alone in zip(seconds[name], seconds[COMPUTE], strict=True)]
        rows.append({"name": name, "exposed_s": median(exposed), "over_compute": median(ratios)})
    hidden = 1 - rows[0]["exposed_s"] / median(seconds[TRANSFERS])
    return {"seconds": seconds, "rows": rows, "hidden_share_of_the_ring": hidden, "turns": len(seconds[COMPUTE])}


def _tell(cell: dict[str, Any]) -> None:
    print(f"{cell['ranks']} ranks with {cell['pairs']:,} x {cell['dim']} {cell['dtype']} each, {cell['turns']} turns")
    for name in (COMPUTE, TRANSFERS):
        print(f"  {name}: {median(cell['seconds'][name]) * 1e3:,.3f} ms")
    for row in cell["rows"]:
        print(f"  {row['name']}: {row['over_compute']:.3f} x compute, {row['exposed_s'] * 1e3:,.3f} ms not hidden")
    print(f"  hidden of the ring's transfers: {cell['hidden_share_of_the_ring']:.1%}", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="benchmarks.gpu_ring", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pairs", type=int, nargs="+", help="on each rank")
    parser.add_argument("--dims", type=int, nargs="+", help="widths of the embeddings")
    parser.add_argument("--tiny", action="store_true", help="few small pairs with gloo on the CPU; needs --out")
    parser.add_argument("--profile", action="store_true", help="a table and a trace of rank 0 instead")
    parser.add_argument("--out", type=Path, help="folder of the results, benchmarks/results unless given")
    return parser


if __name__ == "__main__":
    main()
