"""Time and memory of the sigmoid loss, forward and backward, against open_clip's and its matrix products alone.

    python -m benchmarks.loss                    # b = 8192, d = 512, fp32, two threads
    python -m benchmarks.loss --batch 2048 --rounds 9 --write

All forms are timed in turn within each round, in one process, and ratios are taken within a round: absolute times on a
shared machine say little. Peak memory is the growth of the resident set over the inputs, in a process of its own.
"""

import argparse
import ctypes
import json
import math
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path

import torch
from open_clip.loss import ClipLoss, SigLipLoss
from torch import Tensor
from torch.nn import functional

from siglightning.losses import sigmoid_loss, softmax_loss
from siglightning.losses.inputs import DEFAULT_CHUNK_SIZE, tiles
from siglightning.runtime.environment import describe_environment

RESULTS = Path(__file__).parent / "results"
OURS, THEIRS, PRODUCTS = "siglightning sigmoid_loss", "open_clip SigLipLoss", "three matrix products"


def make_inputs(batch: int, dim: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Unit rows with gradients, t' = log 10 and b = -10."""
    generator = torch.Generator().manual_seed(0)
    images, texts = (functional.normalize(torch.randn(batch, dim, generator=generator), dim=1) for _ in range(2))
    scalars = (torch.tensor([math.log(10.0)]), torch.tensor([-10.0]))
    return tuple(value.requires_grad_() for value in (images, texts, *scalars))  # type: ignore[return-value]  # four


def matrix_products(images: Tensor, texts: Tensor, side: int) -> None:
    """The products that any exact gradient needs, in tiles: logits, logits @ texts, logits.T @ images."""
    gradient_images, gradient_texts = torch.zeros_like(images), torch.zeros_like(texts)
    for rows, columns in tiles(len(images), len(texts), side):
        logits = images[rows] @ texts[columns].T
        gradient_images[rows].addmm_(logits, texts[columns])
        gradient_texts[columns].addmm_(logits.T, images[rows])


def forms(batch: int, dim: int) -> dict[str, Callable[[], object]]:
    """What is compared, by name; each call is one forward and backward pass over the same inputs."""
    images, texts, log_scale, bias = make_inputs(batch, dim)
    detached = images.detach(), texts.detach()
    return {
        OURS: lambda: sigmoid_loss(images, texts, log_scale, bias).backward(),
        THEIRS: lambda: SigLipLoss()(images, texts, log_scale.exp(), bias).backward(),
        PRODUCTS: lambda: matrix_products(*detached, DEFAULT_CHUNK_SIZE),
        "three matrix products, whole": lambda: matrix_products(*detached, batch),
        "siglightning softmax_loss": lambda: softmax_loss(images, texts, log_scale).backward(),
        "open_clip ClipLoss": lambda: ClipLoss()(images, texts, log_scale.exp()).backward(),
    }


def status_kib(field: str) -> int:
    """A line of this process's /proc status, in KiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0])


def peak_extra_mib(name: str, batch: int, dim: int, threads: int) -> float:
    """Growth of the resident set while one form runs once, over its inputs, in MiB. Run in a fresh process."""
    torch.set_num_threads(threads)
    forms(256, dim)[name]()  # thread pools and the libraries' own buffers are not the loss's
    run = forms(batch, dim)[name]
    ctypes.CDLL(None).malloc_trim(0)  # memory that the C library keeps at hand would hide growth
    before = status_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the high-water mark
    run()
    return (status_kib("VmHWM") - before) / 1024


def measure(batch: int, dim: int, threads: int, rounds: int) -> dict[str, dict[str, float]]:
    """Median seconds, median ratio to our loss within a round, and peak memory of each form."""
    torch.set_num_threads(threads)
    candidates = forms(batch, dim)
    for run in candidates.values():
        run()
    seconds: dict[str, list[float]] = {name: [] for name in candidates}
    for _ in range(rounds):
        for name, run in candidates.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), max_tasks_per_child=1) as pool:
        jobs = {name: pool.submit(peak_extra_mib, name, batch, dim, threads) for name in candidates}
        memory = {name: job.result() for name, job in jobs.items()}
    return {
        name: {
            "seconds": statistics.median(times),
            "times_ours": statistics.median(t / ours for t, ours in zip(times, seconds[OURS], strict=True)),
            "peak_extra_mib": memory[name],
        }
        for name, times in seconds.items()
    }


def report(results: dict[str, dict[str, float]], batch: int, dim: int, threads: int) -> str:
    """A Markdown table and the three ratios that matter."""
    lines = [
        f"b = {batch}, d = {dim}, fp32, {threads} threads, forward and backward",
        "",
        "| form | seconds | time / ours | peak extra MiB | memory / ours |",
        "| --- | ---: | ---: | ---: | ---: |",
    ]
    ours = results[OURS]
    for name, row in results.items():
        ratio = row["peak_extra_mib"] / ours["peak_extra_mib"]
        cells = (f"{row['seconds']:.3f}", f"{row['times_ours']:.2f}", f"{row['peak_extra_mib']:.0f}", f"{ratio:.1f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    products = max(results[name]["times_ours"] for name in results if name == PRODUCTS)
    lines += [
        "",
        f"- {results[THEIRS]['times_ours']:.2f} times as fast as open_clip's SigLipLoss",
        f"- {1 / products:.3f} times the time of its matrix products alone",
        f"- 1/{results[THEIRS]['peak_extra_mib'] / ours['peak_extra_mib']:.0f} of open_clip's extra peak memory",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write to `results/` when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, default=8192)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/loss.{md,json}")
    args = parser.parse_args()
    results = measure(args.batch, args.dim, args.threads, args.rounds)
    options = " ".join(f"--{name} {getattr(args, name)}" for name in ("batch", "dim", "threads", "rounds"))
    command = f"python -m benchmarks.loss {options}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("siglightning", "torch", "open_clip_torch"))
    hardware = describe_environment(1, [])["hardware"]
    table = report(results, args.batch, args.dim, args.threads)
    text = f"{table}\n\n`{command}`; {versions}; {hardware['cpu']}, {time.strftime('%Y-%m-%d')}\n"
    print(text)
    if args.write:
        RESULTS.mkdir(parents=True, exist_ok=True)
        (RESULTS / "loss.md").write_text(text)
        record = {"command": command, "versions": versions, "hardware": hardware, "results": results}
        (RESULTS / "loss.json").write_text(json.dumps(record, indent=2) + "\n")


if __name__ == "__main__":
    main()
