"""A function on several processes of this machine, joined by gloo: for benchmarks, for trying things out, for tests."""

import multiprocessing
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch.distributed import FileStore  # type: ignore[attr-defined]  # public, but not re-exported

Result = TypeVar("Result")
TIMEOUT_S = 60.0  # of a transfer between processes of one machine

# Children fork from a server that has imported torch once, instead of importing it each time.
_CONTEXT = multiprocessing.get_context("forkserver")
_PRELOADED = ["torch", "torch.distributed", "siglightning.losses"]
_CONTEXT.set_forkserver_preload(_PRELOADED)


class RanksError(RuntimeError):
    """Some ranks did not return; `errors` holds each one's traceback, empty for one that returned or vanished."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


def preload(*modules: str) -> None:
    """Let children find these modules imported; before the first call of :func:`run_ranks`."""
    _CONTEXT.set_forkserver_preload([*_PRELOADED, *modules])


def run_ranks(
    world_size: int,
    function: Callable[..., Result],
    *arguments: Any,
    timeout_s: float = TIMEOUT_S,
    deadline_s: float = 600.0,
    threads: int = 1,
) -> list[Result]:
    """Call ``function(*arguments)`` in ``world_size`` processes that share a gloo group.

    Args:
        world_size: number of processes.
        function: of a module, so that children can import it; finds its rank with ``dist.get_rank()``.
        arguments: the same for all.
        timeout_s: of the group's communication, in seconds.
        deadline_s: processes that have not ended after so many seconds are killed.
        threads: of torch, in each process.

    Returns:
        What each rank returned, in their order.

    Raises:
        RanksError: some rank did not return.
    """
    with tempfile.TemporaryDirectory() as folder:
        common = (world_size, folder, timeout_s, threads, function, arguments)
        processes = [_CONTEXT.Process(target=_run_rank, args=(rank, *common)) for rank in range(world_size)]
        for process in processes:
            process.start()
        deadline = time.monotonic() + deadline_s
        try:
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
        finally:  # after Ctrl-C, too
            for process in processes:
                process.kill()  # does nothing to one that has ended
                process.join()
        results = [Path(folder, f"{rank}.result") for rank in range(world_size)]
        if all(path.exists() for path in results):
            return [torch.load(path, weights_only=False) for path in results]
        errors = [Path(folder, f"{rank}.error") for rank in range(world_size)]
        raise RanksError([path.read_text() if path.exists() else "" for path in errors])


def new_group() -> dist.ProcessGroup:
    """All ranks in a further group, since on one group every call must be like the first."""
    group = dist.new_group(timeout=timedelta(seconds=TIMEOUT_S))
    assert isinstance(group, dist.ProcessGroup)  # every process is a member
    return group


def _run_rank(
    rank: int,
    world_size: int,
    folder: str,
    timeout_s: float,
    threads: int,
    function: Callable[..., Any],
    arguments: tuple[Any, ...],
) -> None:
    torch.set_num_threads(threads)
    try:
        store, timeout = FileStore(f"{folder}/store", world_size), timedelta(seconds=timeout_s)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
        torch.save(function(*arguments), f"{folder}/{rank}.result")
    except BaseException:
        Path(folder, f"{rank}.error").write_text(traceback.format_exc())
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
