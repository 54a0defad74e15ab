"""Which of the processes of a run this one is."""

from lightning.pytorch.utilities import rank_zero_only


def process_rank() -> int:
    """This process's number among all of the run, 0 for a single one.

    Known before the processes are connected: launchers (torchrun, Slurm, Lightning's own) put it into the
    environment, where Lightning reads it when it is imported.
    """
    return int(getattr(rank_zero_only, "rank", 0))


def is_first_process() -> bool:
    """Whether this process writes what one process must write."""
    return process_rank() == 0


def notice(text: str) -> None:
    """Print a line once for the whole run."""
    if is_first_process():
        print(text, flush=True)
