"""Measurements on local ranks: time side by side, memory in fresh processes, bytes sent, errors against float64."""

import ctypes
import math
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from typing import NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import functional

from siglightning.commands.bench.forms import Form, forms, naive_sigmoid, naive_softmax
from siglightning.distributed.local import new_group, preload, run_ranks

LOG_SCALE, BIAS = math.log(10.0), -10.0  # SigLIP paper, section 3.2
MAX_ERROR_PAIRS = 2048  # on all ranks; the dense float64 reference is a matrix of their square
TOWER_FEATURES = 12288  # of a 64-pixel picture
_run_patiently = partial(run_ranks, timeout_s=3600.0, deadline_s=7200.0)

warnings.filterwarnings("ignore", category=FutureWarning, module="open_clip")  # of functions that it calls
if find_spec("open_clip") is not None:
    preload("open_clip")  # its import takes seconds, and every measurement of memory has processes of its own


@dataclass(frozen=True)
class Workload:
    """What one rank is given.

    Attributes:
        world_size: ranks.
        pairs: local batch of each.
        dim: width of the embeddings.
        threads: of torch on each rank.
        with_towers: embed random pictures and captions with two small towers, instead of random embeddings.
    """

    world_size: int
    pairs: int
    dim: int
    threads: int
    with_towers: bool = False


class Memory(NamedTuple):
    """Of the rank that needs most, in MiB: growth of the resident set, tensors kept for backward, bytes sent."""

    extra_mib: float
    saved_mib: float
    sent_mib: float


def times(names: Sequence[str], work: Workload, rounds: int) -> dict[str, list[float]]:
    """Seconds of a forward and a backward pass of each form, ``rounds`` times, the forms in turn within each round.

    A step is over when the slowest rank is.
    """
    ranks = _run_patiently(work.world_size, _times, names, work, rounds, threads=work.threads)
    return {name: [max(step) for step in zip(*(rank[name] for rank in ranks), strict=True)] for name in names}


def memory(name: str, work: Workload) -> Memory:
    """Peak memory, bytes kept and bytes sent of one step, in processes of their own."""
    ranks = _run_patiently(work.world_size, _memory, name, work, threads=work.threads)
    return Memory(*(max(values) for values in zip(*ranks, strict=True)))


def errors(names: Sequence[str], work: Workload) -> dict[str, dict[str, float]]:
    """Largest error of each gradient after averaging over ranks, against dense float64, over the largest entry.

    Of a batch of ``work.pairs`` on each rank, or as many as make `MAX_ERROR_PAIRS` on all ranks.
    """
    pairs = min(work.pairs, MAX_ERROR_PAIRS // work.world_size)
    ranks = _run_patiently(work.world_size, _gradients, names, pairs, work.dim, threads=work.threads)
    references = {family: _reference(family, work.world_size, pairs, work.dim) for family in ("sigmoid", "softmax")}
    found = {}
    for name in names:
        reference = references[forms()[name].family]
        found[name] = {
            key: float((_averaged([rank[name][key] for rank in ranks], key) - value).abs().max() / value.abs().max())
            for key, value in reference.items()
            if key in ranks[0][name]
        }
    return found


def ratios(seconds: dict[str, list[float]], ours: str) -> dict[str, float]:
    """Median over rounds of each form's time over ours within the round."""
    return {
        name: median(other / own for other, own in zip(values, seconds[ours], strict=True))
        for name, values in seconds.items()
    }


class _Inputs(NamedTuple):
    image: Tensor
    text: Tensor
    log_scale: Tensor
    bias: Tensor


def _inputs(pairs: int, dim: int, rank: int, dtype: torch.dtype = torch.float32) -> _Inputs:
    generator = torch.Generator().manual_seed(rank)
    image, text = (functional.normalize(torch.randn(pairs, dim, generator=generator), dim=1) for _ in range(2))
    scalars = (torch.tensor([value], dtype=dtype, requires_grad=True) for value in (LOG_SCALE, BIAS))
    return _Inputs(image.to(dtype).requires_grad_(), text.to(dtype).requires_grad_(), *scalars)


def _group() -> dist.ProcessGroup | None:
    """A group of its own; ``None`` for one rank."""
    return None if dist.get_world_size() == 1 else new_group()


def _times(names: Sequence[str], work: Workload, rounds: int) -> dict[str, list[float]]:
    steps = {name: _Step(forms()[name], work) for name in names}
    for step in steps.values():
        step.run()
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for _ in range(rounds):
        for name, step in steps.items():
            dist.barrier()
            start = time.perf_counter()
            step.run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def _memory(name: str, work: Workload) -> Memory:
    warm_up = Workload(work.world_size, 64, work.dim, work.threads, work.with_towers)
    _Step(forms()[name], warm_up).run()  # thread pools, connections and the libraries' buffers are not the loss's
    step = _Step(forms()[name], work)
    ctypes.CDLL(None).malloc_trim(0)  # memory that the C library keeps at hand would hide growth
    dist.barrier()
    sent, resident, code = _sent_bytes(), _status_kib("VmRSS"), _status_kib("RssFile")
    Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM, the high-water mark
    saved = step.run_and_count()
    # Pages of libraries that are used for the first time come in as the system likes, up to tens of MiB at once.
    peak = _status_kib("VmHWM") - max(0, _status_kib("RssFile") - code)
    dist.barrier()
    sent_mib = (_sent_bytes() - sent) / work.world_size / 2**20
    return Memory((peak - resident) / 1024, saved / 2**20, sent_mib)


class _Step:
    """A forward and a backward pass of one form over inputs of its own."""

    def __init__(self, form: Form, work: Workload) -> None:
        self.form, self.group = form, _group()
        self.inputs = _inputs(work.pairs, work.dim, dist.get_rank())
        self.towers = _Towers(work) if work.with_towers else None

    def run(self) -> None:
        embeds = self.inputs[:2] if self.towers is None else self.towers()
        torch.autograd.backward(self.form.run(*embeds, *self.inputs[2:], self.group))
        for value in self.inputs:
            value.grad = None

    def run_and_count(self) -> int:
        """Run; returns the bytes of tensors kept for backward that are not inputs."""
        with _counting_saved([value.data_ptr() for value in self.inputs]) as sizes:
            self.run()
        return sum(sizes.values())


class _Towers:
    """Two small towers over pictures and captions of random features; their memory grows with the batch."""

    def __init__(self, work: Workload) -> None:
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(TOWER_FEATURES, 512), nn.GELU(), nn.Linear(512, work.dim))
        self.text = nn.Sequential(nn.Linear(1024, 512), nn.GELU(), nn.Linear(512, work.dim))
        self.pixels, self.words = torch.randn(work.pairs, TOWER_FEATURES), torch.randn(work.pairs, 1024)

    def __call__(self) -> tuple[Tensor, Tensor]:
        embeds = self.image(self.pixels), self.text(self.words)
        return functional.normalize(embeds[0], dim=1), functional.normalize(embeds[1], dim=1)


@contextmanager
def _counting_saved(inputs: Sequence[int]) -> Iterator[dict[int, int]]:
    """Collect size by address of the storages that autograd keeps."""
    sizes: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in inputs:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield sizes


def _status_kib(field: str) -> int:
    text = Path("/proc/self/status").read_text()
    return int(text.partition(f"{field}:")[2].split()[0])


def _sent_bytes() -> int:
    """Bytes that the machine has sent over its loopback device, through which local ranks talk."""
    lines = Path("/proc/net/dev").read_text().splitlines()
    (loopback,) = (line.partition(":")[2].split() for line in lines if line.strip().startswith("lo:"))
    return int(loopback[8])


def _gradients(names: Sequence[str], pairs: int, dim: int) -> dict[str, dict[str, Tensor]]:
    found = {}
    for name in names:
        inputs = _inputs(pairs, dim, dist.get_rank())
        torch.autograd.backward(forms()[name].run(*inputs, _group()))
        found[name] = {key: value.grad for key, value in inputs._asdict().items() if value.grad is not None}
    return found


def _averaged(parts: Sequence[Tensor], key: str) -> Tensor:
    """What DistributedDataParallel's averaging makes of the ranks' gradients, as one tensor of the whole batch."""
    values = [part.double() for part in parts]
    return torch.cat(values) / len(values) if key in ("image", "text") else torch.stack(values).mean(0)


def _reference(family: str, world_size: int, pairs: int, dim: int) -> dict[str, Tensor]:
    ranks = [_inputs(pairs, dim, rank, torch.float64) for rank in range(world_size)]
    image, text = (torch.cat([rank[i].detach() for rank in ranks]).requires_grad_() for i in range(2))
    log_scale, bias = (
        torch.tensor([torch.tensor(value).item()], dtype=torch.float64, requires_grad=True)  # as rounded to fp32
        for value in (LOG_SCALE, BIAS)
    )
    run = naive_sigmoid if family == "sigmoid" else naive_softmax
    torch.autograd.backward(run(image, text, log_scale, bias, None))
    values = {"image": image, "text": text, "log_scale": log_scale, "bias": bias}
    return {key: value.grad for key, value in values.items() if value.grad is not None}
