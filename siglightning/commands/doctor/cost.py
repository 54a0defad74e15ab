"""What a run costs beside time: memory, disk, and what the hardware must be able to do."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from siglightning.commands.doctor.case import Case
from siglightning.commands.doctor.findings import Finding, NotApplicableError
from siglightning.commands.plan import shape_of
from siglightning.commands.plan.memory import forecast, largest_micro_batch
from siglightning.data import EmbeddingDataModule
from siglightning.models.footprint import Precision

NEARLY = 0.9  # of a device's memory; what libraries and the allocator hold is in no forecast
_MIB, _GIB = 2**20, 2**30


def check_memory(case: Case) -> Iterator[Finding]:
    """Compare the forecast of a step with the memory of the device."""
    task = case.contrastive
    precision = _precision(case)
    stored = isinstance(case.datamodule, EmbeddingDataModule)
    shape = shape_of(task, precision, stored_features=stored, optimizer_bytes=case.optimizer_bytes)
    pairs, devices, slices = case.share, case.world_size, task.network.micro_batch_size
    plan = forecast(shape, pairs, devices, slices, task.chunk_size)
    has, whose = device_memory(case.device)
    has //= case.local_processes if case.device.type == "cpu" else 1
    sliced = "at once" if slices is None else f"in slices of {slices:,}"
    text = (
        f"a step of {pairs:,} pairs {sliced} takes {_size(plan.peak)} on each of {devices} devices, by forecast; "
        f"{whose} has {_size(has)} for it"
    )
    values: dict[str, Any] = {"peak_bytes": plan.peak, "device_bytes": has}
    if plan.peak <= NEARLY * has:
        yield Finding("ok", text, values=values)
        return
    fitting = largest_micro_batch(shape, pairs, devices, int(NEARLY * has), task.chunk_size)
    values["micro_batch_size"] = fitting
    remedy = f"Set the network's `micro_batch_size: {fitting}`; the batch stays what it is."
    if fitting is None:
        remedy = "No slice fits: take a smaller model, more devices, or another optimizer (`siglightning plan`)."
    yield Finding("error" if plan.peak > has else "warning", text, remedy, values=values)


def device_memory(device: torch.device) -> tuple[int, str]:
    """Bytes that a device has, for a CPU those that are free now, and what to call it."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory, torch.cuda.get_device_name(device)
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    for line in _lines("/proc/meminfo"):
        if line.startswith("MemAvailable:"):
            free = int(line.split()[1]) * 1024
    limits = [int(line) for line in _lines("/sys/fs/cgroup/memory.max") if line.strip().isdigit()]
    return min([free, *limits]), "this machine"


def check_disk(case: Case) -> Iterator[Finding]:
    """Compare the checkpoints that a run keeps with the space where it writes."""
    if not case.keep_last:
        raise NotApplicableError("the run keeps no checkpoints (`trainer.enable_checkpointing`)")
    weights = sum(tensor.nbytes for tensor in case.task.state_dict().values())
    each = weights + case.optimizer_bytes
    best = 2 * weights if getattr(case.task, "monitor", None) else 0
    needed = (case.keep_last + 1) * each + best  # a new one is whole before the oldest goes
    place = _nearest_folder(case.run_dir)
    free = shutil.disk_usage(place).free
    text = (
        f"checkpoints of {_size(each)} ({_size(weights)} of weights), {_size(needed)} at the most; "
        f"{_size(free)} are free at {case.run_dir}"
    )
    values = {"checkpoint_bytes": each, "needed_bytes": needed, "free_bytes": free}
    if not os.access(place, os.W_OK):
        yield Finding("error", f"{text}; {place} cannot be written", "Choose another --run_dir.", values=values)
    elif needed > free:
        remedy = "Lower `--checkpoint.keep_last`, free some space, or choose another --run_dir."
        yield Finding("error", text, remedy, values=values)
    elif 2 * needed > free:
        remedy = "Free some space: figures, samples and whatever else writes there want their share."
        yield Finding("warning", text, remedy, values=values)
    else:
        yield Finding("ok", text, values=values)


def check_precision(case: Case) -> Iterator[Finding]:
    """Whether the device computes in the run's precision, and whether it suits the weights."""
    asked, name = str(case.trainer.precision), case.device.type
    text = f"{asked} on {name}"
    if asked in ("16-true", "bf16-true"):
        kind, smallest = ("16", 2048) if asked == "16-true" else ("bf16", 256)  # half the spacing of numbers near 1
        yield Finding(
            "warning",
            f"{text}: weights of 16 bits lose updates below 1/{smallest} of their size",
            f"Set `trainer.precision: {kind}-mixed`, which keeps weights in 32 bits.",
        )
    elif name == "cuda" and "bf16" in asked and not torch.cuda.is_bf16_supported(including_emulation=False):
        yield Finding("warning", f"{text}: this GPU has no bf16 of its own", "Set `trainer.precision: 16-mixed`.")
    elif name == "cpu" and asked != "32-true" and asked != "64-true" and not _cpu_has_bf16():
        remedy = "Set `trainer.precision: 32-true`."
        yield Finding("warning", f"{text}: this CPU has no bf16 of its own, which makes it slower than 32 bits", remedy)
    elif name == "cuda" and asked == "32-true" and torch.get_float32_matmul_precision() == "highest":
        yield Finding(
            "warning",
            f"{text}: full 32-bit products leave the tensor cores idle",
            "Set `trainer.precision: bf16-mixed`, or let torch use TF32.",
        )
    else:
        yield Finding("ok", text, values={"precision": asked, "device": name})


def check_workers(case: Case) -> Iterator[Finding]:
    """Compare loading processes with the cores that there are."""
    workers, local = case.data.num_workers, case.local_processes
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    values = {"num_workers": workers, "processes": local, "cores": cores}
    text = f"{workers} loading processes for each of {local} training processes on {cores} cores"
    if workers * local > cores:
        remedy = f"Set `data.num_workers: {max(1, cores // local - 1) if cores > local else 0}`."
        yield Finding("warning", f"{text}: they wait for each other", remedy, values=values)
    elif workers == 0 and case.device.type != "cpu" and cores > local:
        remedy = f"Set `data.num_workers: {max(1, cores // local - 1)}`."
        yield Finding("warning", f"{text}: the device waits while pictures are loaded", remedy, values=values)
    else:
        yield Finding("ok", text, values=values)


def _precision(case: Case) -> Precision:
    asked = str(case.trainer.precision)
    kinds = {"32": torch.float32, "64": torch.float64, "bf16": torch.bfloat16, "16": torch.float16}
    kind, _, how = asked.partition("-")
    if kind not in kinds or how not in ("true", "mixed"):
        raise NotApplicableError(f"nothing is known of the precision {asked}")
    return Precision(autocast=kinds[kind]) if how == "mixed" else Precision(kinds[kind])


def _cpu_has_bf16() -> bool:
    flags = next((line for line in _lines("/proc/cpuinfo") if line.startswith(("flags", "Features"))), "")
    return any(word in flags.split() for word in ("avx512_bf16", "amx_bf16", "bf16", "avx_ne_convert"))


def _nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(folder for folder in (path.absolute(), *path.absolute().parents) if folder.is_dir())


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text(errors="replace").splitlines()
    except OSError:
        return []


def _size(count: int) -> str:
    return f"{count / _GIB:.2f} GiB" if count >= _GIB else f"{count / _MIB:.1f} MiB"
