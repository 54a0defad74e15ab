"""What to do when the disk does not take what a run writes."""

import errno

from siglightning.runtime.run_checkpoint import NotSavedError
from siglightning.runtime.rundir import RunDir

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def is_of_the_disk(error: BaseException) -> bool:
    """Whether a disk is full or has become read-only, or checkpoints could not be written for any reason."""
    return isinstance(error, NotSavedError) or (isinstance(error, OSError) and error.errno in _OF_THE_DISK)


def disk_remedy(error: BaseException, run_dir: RunDir | None) -> str:
    """What to mend, and that nothing else is lost."""
    where = f"the disk of {run_dir.root.absolute()}" if run_dir is not None else "the disk"
    return (
        f"{error}. Make space on {where}, or make it writable again; earlier checkpoints are intact, and the same "
        "command goes on from the newest one."
    )
