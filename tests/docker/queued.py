"""A callback for jobs of Slurm."""

import os
import subprocess
import time
from pathlib import Path

from lightning.pytorch import Callback


class Warned(Callback):
    """As if the job's time were nearly over: Slurm sends SIGUSR1 to its processes, the first time it runs.

    The time of that is left in ``note``.
    """

    def __init__(self, step: int, note: str) -> None:
        self.step, self.note = step, Path(note)

    def on_train_batch_start(self, trainer, *_):
        restarted = "SLURM_RESTART_COUNT" in os.environ
        if trainer.is_global_zero and trainer.global_step == self.step and not restarted:
            self.note.write_text(str(time.time()))
            subprocess.run(["scancel", "--signal=USR1", os.environ["SLURM_JOB_ID"]], check=True)
