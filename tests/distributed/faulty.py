"""A callback that kills its process once, for tests of what comes back."""

import os
import signal

from lightning.pytorch import Callback


class KillOnce(Callback):
    """Kill -9 of one rank at one step, on the first attempt of a launcher that restarts."""

    def __init__(self, rank: int, step: int) -> None:
        self.rank, self.step = rank, step

    def on_train_batch_start(self, trainer, *_):
        is_first = os.environ.get("TORCHELASTIC_RESTART_COUNT") == "0"
        if is_first and (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            os.kill(os.getpid(), signal.SIGKILL)
