"""What a run ran on: versions, commit, hardware, command line."""

import os
import platform
import shutil
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

import siglightning

PACKAGES = (
    "torch",
    "torchvision",
    "lightning",
    "torchmetrics",
    "jsonargparse",
    "open_clip_torch",
    "timm",
    "transformers",
    "lion-pytorch",
    "numpy",
    "pyarrow",
    "wandb",
)
_TIMEOUT_S = 10  # for git and nvidia-smi, which may hang on a sick file system or driver


def describe_environment(world_size: int, command: list[str]) -> dict[str, Any]:
    """Collect what somebody needs to repeat a run elsewhere.

    Environment variables are left out: they may hold secrets.

    Args:
        world_size: number of processes that train together.
        command: the arguments of the command line.

    Returns:
        A dictionary of JSON values.
    """
    return {
        "started_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["siglightning", *command],
        "world_size": world_size,
        "versions": {"siglightning": siglightning.__version__, "python": platform.python_version(), **_versions()},
        "git": _git_state(),
        "hardware": {
            "platform": platform.platform(),
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "usable_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
            "memory_gib": round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
            "gpus": _gpus(),
        },
    }


def _versions() -> dict[str, str]:
    found = {}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found


def _git_state() -> dict[str, Any] | None:
    """Commit of the checkout that the code or, failing that, the working directory belongs to."""
    for directory in (Path(siglightning.__file__).parent, Path.cwd()):
        commit = _output("git", "-C", str(directory), "rev-parse", "HEAD")
        if commit:
            dirty = bool(_output("git", "-C", str(directory), "status", "--porcelain", "--untracked-files=no"))
            return {"commit": commit, "dirty": dirty}
    return None


def _cpu_model() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            if line.lower().startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    """Name, memory and driver of each GPU, read without initialising CUDA, which would forbid forking."""
    listing = _output("nvidia-smi", "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader")
    return listing.splitlines() if listing else []


def _output(*command: str) -> str:
    """Standard output of a command; empty when it is missing, fails or hangs."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return result.stdout.strip() if result.returncode == 0 else ""
