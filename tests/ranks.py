"""Real processes with gloo between them: `run_ranks` starts them, hands out arguments and collects what they return."""

import multiprocessing
import tempfile
import traceback
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

# Children fork from a server that has imported torch once, instead of importing it each time.
_CONTEXT = multiprocessing.get_context("forkserver")
_CONTEXT.set_forkserver_preload(["torch", "torch.distributed", "siglightning.losses"])
GROUP_TIMEOUT_S = 60.0  # of transfers; a machine that is busy elsewhere stays far below it


class RanksError(Exception):
    """Some ranks raised; `errors` holds each one's traceback, empty for a rank that returned or vanished."""

    def __init__(self, errors: list[str]) -> None:
        super().__init__("\n".join(errors))
        self.errors = errors


def run_ranks(world_size: int, function, *arguments: Any, group_timeout_s: float = GROUP_TIMEOUT_S) -> list[Any]:
    """Call ``function(*arguments)`` in ``world_size`` processes that share a gloo group; results in rank order.

    Args:
        world_size: number of processes.
        function: of a module, so that children can import it; finds its rank with ``dist.get_rank()``.
        arguments: the same for all.
        group_timeout_s: of the group.

    Raises:
        RanksError: some rank did not return.
    """
    with tempfile.TemporaryDirectory() as folder:
        common = (world_size, folder, group_timeout_s, function, arguments)
        processes = [_CONTEXT.Process(target=_child, args=(rank, *common)) for rank in range(world_size)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        results = [Path(folder, f"{rank}.result") for rank in range(world_size)]
        if all(path.exists() for path in results):
            return [torch.load(path, weights_only=False) for path in results]
        errors = [Path(folder, f"{rank}.error") for rank in range(world_size)]
        raise RanksError([path.read_text() if path.exists() else "" for path in errors])


def _child(rank: int, world_size: int, folder: str, timeout_s: float, function, arguments) -> None:
    torch.set_num_threads(1)
    timeout = timedelta(seconds=timeout_s)
    store = dist.FileStore(f"{folder}/store", world_size)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
    try:
        torch.save(function(*arguments), f"{folder}/{rank}.result")
    except BaseException:
        Path(folder, f"{rank}.error").write_text(traceback.format_exc())
    finally:
        dist.destroy_process_group()
