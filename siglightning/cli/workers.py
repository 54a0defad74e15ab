"""What to do when a loading process is lost."""

_OF_TORCH = "DataLoader worker (pid"  # with which torch's own error begins


def is_lost_worker(error: BaseException) -> bool:
    """Whether a loading process was killed or has ended without a word."""
    return isinstance(error, RuntimeError) and _OF_TORCH in str(error)


def worker_remedy(error: BaseException) -> str:
    """What it may have been, and that nothing but the last steps is lost."""
    said = str(error).strip().splitlines()[0][:200]
    return (
        f"A loading process was killed ({said}) The kernel does so where memory runs out, which its log says: then "
        "lower `data.num_workers` or, in a container, give it more shared memory. Checkpoints are intact, and the "
        "same command goes on from the newest one."
    )
