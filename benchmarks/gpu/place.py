"""Where a measurement ran, and where its results may lie."""

import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from siglightning.runtime.environment import describe_environment

RESULTS = Path(__file__).parents[1] / "results"
MORE_PACKAGES = ("triton", "siglip-kernel", "matplotlib")  # beside those that every run records
STATE = ("clocks.sm", "clocks.mem", "temperature.gpu", "power.draw")


def describe(device: torch.device, module: str, arguments: list[str]) -> dict[str, Any]:
    """Device, driver, versions, date and command of a measurement.

    Args:
        device: on which it runs.
        module: what ``python -m`` is given.
        arguments: those of the command line.
    """
    environment = describe_environment(1, [])
    return {
        "kind": device.type,
        "device": device_name(device),
        "driver": _driver(environment["hardware"]["gpus"]) if device.type == "cuda" else None,
        "cuda": torch.version.cuda if device.type == "cuda" else None,
        "cpu": environment["hardware"]["cpu"],
        "cores": environment["hardware"]["usable_cores"],
        "versions": environment["versions"] | _versions(),
        "commit": (environment["git"] or {}).get("commit"),
        "dirty": (environment["git"] or {}).get("dirty"),
        "date": environment["started_at"],
        "command": f"python -m {module} {shlex.join(arguments)}".rstrip(),
    }


def device_name(device: torch.device) -> str:
    """What the vendor calls it; ``cpu`` for a CPU."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def gpu_state() -> str | None:
    """Clocks, temperature and power at this moment, as `nvidia-smi` tells them; ``None`` where it tells nothing."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", f"--query-gpu={','.join(STATE)}", "--format=csv,noheader", "--id=0"]
    found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    return found.stdout.strip() or None if found.returncode == 0 else None


def choose_device(name: str | None) -> torch.device:
    """The device asked for; the GPU where there is one, else the CPU.

    Raises:
        ValueError: a GPU is asked for where there is none.
    """
    if name is not None and name.startswith("cuda") and not torch.cuda.is_available():
        raise ValueError(f"Expected a GPU for --device {name}, got none. Use --device cpu --tiny to try the script.")
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def share_memory(device: torch.device) -> None:
    """Let blocks of any size come out of one piece of a GPU's memory, before anything is allocated there.

    Else what one run leaves in the allocator is too small for the next, which then waits for it to be given back: in
    turns, that would be timed. Where the driver cannot do it, blocks stay as they are.
    """
    if device.type != "cuda":
        return
    settings = getattr(torch._C, "_accelerator_setAllocatorSettings", None) or torch.cuda.memory._set_allocator_settings
    settings("expandable_segments:True")
    try:
        torch.empty(2**28, dtype=torch.uint8, device=device)
    except RuntimeError:
        settings("expandable_segments:False")


def results_folder(out: Path | None, kind: str) -> Path:
    """The folder to write to, which is made; ``benchmarks/results`` unless ``out`` names another.

    Raises:
        ValueError: figures of anything but a GPU would lie among those of GPUs.
    """
    folder = RESULTS if out is None else out
    if kind != "cuda" and folder.resolve().is_relative_to(RESULTS.resolve()):
        raise ValueError(
            f"Expected a GPU for results in {RESULTS.name}, got figures of a {kind}. They would be taken for a GPU's; "
            "name a folder elsewhere with --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _driver(gpus: list[str]) -> str | None:
    """The third field of what `describe_environment` lists of the first GPU."""
    fields = re.split(r",\s*", gpus[0]) if gpus else []
    return fields[2] if len(fields) > 2 else None


def _versions() -> dict[str, str]:
    found = {}
    for package in MORE_PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def fail(message: str) -> None:
    """End the process as a wrong argument does."""
    print(f"error: {message}", file=sys.stderr)
    raise SystemExit(2)
