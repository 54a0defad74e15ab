"""Time and memory of exact retrieval both ways, against the matrix product alone.

    python -m benchmarks.retrieval               # 50,000 images x 250,000 texts, five an image, d = 512
    python -m benchmarks.retrieval --threads 1 --turns 2 --write      # on a machine that others use, too

The product of all images with all texts and their whole retrieval both ways take turns, for embeddings of a model that
finds most pairs, of one that knows nothing, whose wrong answers stand high, and with texts in another order than their
images, which are sorted first. The ratio is taken within a turn, of wall-clock time and of processor time. Where others
compute, too, only the latter with one thread says something: threads of a parallel region wait for the one that was put
off, and retrieval has more regions than the product. The product has the side of a tile that suits it best of 512 to
4,096.

Peak memory is the growth of the resident set over the embeddings while all images and texts are evaluated, in a process
of its own, with recalls, mean ranks, chance levels and 1,000 resamples. Texts are shuffled there, which costs a sorted
copy of them: data whose captions come in the order of their pictures need less.
"""

import argparse
import ctypes
import json
import os
import statistics
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from siglightning.evaluation import ranks_both_ways, retrieval_metrics
from siglightning.runtime.environment import describe_environment

RESULTS = Path(__file__).parent / "results"
SIDES = (512, 1024, 2048, 4096)
# Share of the image in its texts, beside noise; whether texts come in another order than their images.
KINDS = {"trained": (1.0, False), "untrained": (0.0, False), "trained, texts shuffled": (1.0, True)}
Pairs = tuple[Tensor, Tensor, Tensor, Tensor]


class Times(NamedTuple):
    """Seconds of the wall clock and of the processor, all threads together."""

    wall: float
    cpu: float


def make_inputs(images: int, texts: int, dim: int, signal: float = 1.0, shuffled: bool = False) -> Pairs:
    """Noisy unit rows; text j describes image ``j * images // texts``, by so much of the image's embedding."""
    generator = torch.Generator().manual_seed(0)
    text_ids = torch.arange(texts) * images // texts
    image = normalize(torch.randn(images, dim, generator=generator), dim=1)
    text = torch.randn(texts, dim, generator=generator)
    for rows in torch.arange(texts).split(10_000):
        text[rows] = normalize(0.15 * text[rows] + signal * image[text_ids[rows]], dim=1)
    if shuffled:
        order = torch.randperm(texts, generator=generator)
        text, text_ids = text[order], text_ids[order]
    return image, text, torch.arange(images), text_ids


def product(images: Tensor, texts: Tensor, side: int) -> None:
    """All dot products, a tile at a time into the same memory."""
    buffer = torch.empty(side * side)
    for rows in images.split(side):
        for columns in texts.split(side):
            torch.mm(rows, columns.T, out=buffer[: len(rows) * len(columns)].view(len(rows), -1))


def best_side(images: Tensor, texts: Tensor) -> int:
    """The side of a tile with which the product is fastest, of three tries each in turn."""
    seconds: dict[int, list[float]] = {side: [] for side in SIDES}
    for _ in range(3):
        for side, of_side in seconds.items():
            of_side.append(_times(product, images, texts, side).wall)
    return min(seconds, key=lambda side: min(seconds[side]))


def take_turns(inputs: Pairs, turns: int, side: int) -> tuple[list[Times], list[Times]]:
    """Times of the product, and of retrieval, turn by turn."""
    times: tuple[list[Times], list[Times]] = [], []
    for _ in range(turns):
        times[0].append(_times(product, inputs[0], inputs[1], side))
        times[1].append(_times(ranks_both_ways, *inputs))
    return times


class Whole(NamedTuple):
    """An evaluation of all images and texts: memory beyond the embeddings, and seconds of the wall clock."""

    mib: float
    ranks_s: float
    metrics_s: float


def evaluate_all(images: int, texts: int, dim: int, threads: int) -> Whole:
    """Growth of the resident set over the embeddings, and how long it took. Run in a fresh process."""
    torch.set_num_threads(threads)
    retrieval_metrics(*make_inputs(2048, 4096, dim))  # thread pools and the libraries' own buffers are not its own
    image, text, image_ids, text_ids = make_inputs(images, texts, dim, shuffled=True)
    ctypes.CDLL(None).malloc_trim(0)  # memory that the C library keeps at hand would hide growth
    before = _status_kib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the high-water mark
    start = time.perf_counter()
    ranks = ranks_both_ways(image, text, image_ids, text_ids)
    middle = time.perf_counter()
    retrieval_metrics(image, text, image_ids, text_ids, ranks=ranks)
    end = time.perf_counter()
    return Whole((_status_kib("VmHWM") - before) / 1024, middle - start, end - middle)


def main() -> None:
    """Measure, print, and write to `results/` when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--texts", type=int, default=250_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--turns", type=int, default=3, help="of each kind of embeddings")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/retrieval.{md,json}")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        whole = pool.submit(evaluate_all, args.images, args.texts, args.dim, args.threads).result()
    rows, record = [], {"whole": whole._asdict()}
    for kind, (signal, shuffled) in KINDS.items():
        inputs = make_inputs(args.images, args.texts, args.dim, signal, shuffled)
        side = best_side(inputs[0][:4096], inputs[1][:8192])
        alone, ours = take_turns(inputs, args.turns, side)
        rows += [
            _row(f"product alone, tiles of {side}", alone, alone),
            _row(f"retrieval both ways, {kind}", ours, alone),
        ]
        record[kind] = {"side": side, "product_s": alone, "retrieval_s": ours}
    load = os.getloadavg()[0]
    text = "\n".join(
        [
            f"{args.images:,} images x {args.texts:,} texts, d = {args.dim}, fp32, {args.threads} threads; "
            f"{args.turns} turns of each kind",
            "",
            "| | wall s | CPU s | wall / product | CPU / product |",
            "| --- | ---: | ---: | ---: | ---: |",
            *rows,
            "",
            "- seconds are means of the turns, ratios their median with the lowest and the highest",
            f"- all at once, texts shuffled: {whole.mib:.0f} MiB beyond the embeddings at the peak; ranks "
            f"{whole.ranks_s:.1f} s, metrics with intervals {whole.metrics_s:.1f} s",
            f"- load average at the end: {load:.1f} on {os.cpu_count()} cores",
        ]
    )
    options = " ".join(f"--{name} {getattr(args, name)}" for name in ("images", "texts", "dim", "turns"))
    command = f"python -m benchmarks.retrieval {options} --threads {args.threads}"
    versions = ", ".join(f"{name} {version(name)}" for name in ("siglightning", "torch"))
    hardware = describe_environment(1, [])["hardware"]
    text += f"\n\n`{command}`; {versions}; {hardware['cpu']}, {time.strftime('%Y-%m-%d')}\n"
    print(text)
    if args.write:
        (RESULTS / "retrieval.md").write_text(text)
        record |= {"command": command, "versions": versions, "hardware": hardware, "load": load}
        (RESULTS / "retrieval.json").write_text(json.dumps(record, indent=2) + "\n")


def _row(name: str, times: list[Times], to: list[Times]) -> str:
    cells = [f"{statistics.mean(values):.1f}" for values in zip(*times, strict=True)]
    for ours, theirs in zip(zip(*times, strict=True), zip(*to, strict=True), strict=True):
        ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
        cells.append(f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})")
    return f"| {name} | {' | '.join(cells)} |"


def _times(call: Callable[..., object], *arguments: object) -> Times:
    wall, cpu = time.perf_counter(), time.process_time()
    call(*arguments)
    return Times(time.perf_counter() - wall, time.process_time() - cpu)


def _status_kib(field: str) -> int:
    """A line of this process's /proc status, in KiB."""
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0])


if __name__ == "__main__":
    main()
