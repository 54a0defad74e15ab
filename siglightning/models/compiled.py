"""Towers that torch.compile has made kernels for, in place: parameters and checkpoints keep their names."""

import os
import shutil
import sys
import sysconfig
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

import torch
from torch import nn

Compile = bool | Literal["max-autotune-no-cudagraphs"]
"""``False``, ``True``, or torch's mode that also times several kernels for each matrix product. Modes with CUDA graphs
are left out: their outputs lie in memory that the next slice of a batch overwrites."""

# Graphs of one code object until torch gives up and runs it as it is. Both towers share the code of a module's call,
# and each has one graph for training, for evaluation, for batches of any size and for one sample, on every stage of
# unfreezing: torch's limit of 8 is reached by two towers without any.
_GRAPHS = 64


def compile_in_place(tower: nn.Module, how: Compile) -> None:
    """Let a tower be compiled when it is called first; nothing for ``False``, or for one that already is.

    Copies and pickles of it are not compiled. The first size of a batch is compiled as it is, the second one for all
    sizes to come.

    Args:
        tower: whose call is compiled. What stands around it (slices, checkpointing, autocast, DDP) stays as it is.
        how: see :data:`Compile`.
    """
    if how is False or tower._compiled_call_impl is not None:
        return
    import torch._dynamo  # late: it takes as long as torch itself

    torch._dynamo.config.recompile_limit = max(_GRAPHS, torch._dynamo.config.recompile_limit)
    tower.compile(mode=None if how is True else how)


def require_compiler(device: torch.device) -> None:
    """Refuse a machine on which torch.compile would fail in the first step, with a trace in place of a reason.

    Args:
        device: that the towers are trained on.

    Raises:
        ValueError: no compiler, no Python headers, or on CUDA no Triton or too old a GPU.
    """
    missing = _missing(device)
    if missing is not None:
        what, remedy = missing
        raise ValueError(
            f"Expected what torch.compile needs on {device.type}, got no {what}. {remedy}, or set the network's "
            "`compile_towers: false`."
        )


def _missing(device: torch.device) -> tuple[str, str] | None:
    """What is not there, and what to do about it."""
    if device.type == "cuda":
        if find_spec("triton") is None:
            return "Triton", "Install torch with CUDA, which brings it"
        if torch.cuda.get_device_capability(device) < (7, 0):
            return "GPU of compute capability 7.0 or more", "Take a newer GPU"
    compilers = _compilers(device)
    if not any(shutil.which(name) for name in compilers):
        return f"compiler ({' or '.join(compilers)})", "Install one (Debian: `apt-get install g++`)"
    if not Path(sysconfig.get_path("include"), "Python.h").is_file():
        return "Python.h", "Install Python's headers (Debian: `apt-get install python3-dev`)"
    return None


def _compilers(device: torch.device) -> list[str]:
    """Those that torch (C++, for a CPU) and Triton (C, for the launchers of its kernels) look for."""
    if device.type == "cuda":
        return [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang", "cc"]
    return [os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")]
