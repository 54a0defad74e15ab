"""Callbacks that let a process die or stall, for tests of what the others do."""

import json
import multiprocessing
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path

from lightning.pytorch import Callback

from siglightning.data.sources.files import FilesSource
from siglightning.runtime import checkpoint


def attempt():
    """How often a launcher that restarts has started this process again."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"))


class KillAt(Callback):
    """Kill -9 of a rank at a step, per attempt of a launcher that restarts: ``kills`` are (attempt, rank, step).

    The times of a kill and of the first step of the attempt after it are lines of ``note``.
    """

    def __init__(self, kills: list[list[int]], note: str) -> None:
        self.kills, self.note = kills, Path(note)

    def on_train_start(self, trainer, *_):
        if attempt() > 0 and trainer.global_rank == 0:
            self.write("back")

    def on_train_batch_start(self, trainer, *_):
        if [attempt(), trainer.global_rank, trainer.global_step] in self.kills:
            self.write("kill")
            os.kill(os.getpid(), signal.SIGKILL)

    def write(self, event):
        with self.note.open("a") as file:
            file.write(f"{event} {time.time()}\n")


class Fault(Callback):
    """Something happens to one rank at one step; its process id is left behind before."""

    def __init__(self, rank: int, step: int, note: str) -> None:
        self.rank, self.step, self.note = rank, step, note

    def on_train_batch_start(self, trainer, *_):
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            Path(self.note).write_text(str(os.getpid()))
            self.happen()


class Stall(Fault):
    def happen(self):
        signal.pause()


class Kill(Fault):
    def happen(self):
        os.kill(os.getpid(), signal.SIGKILL)


class Fail(Fault):
    def happen(self):
        raise KeyError("what went wrong")


class Terminate(Callback):
    """SIGTERM to one rank at one step, or to the launcher that is its parent; on the first attempt."""

    def __init__(self, rank: int, step: int, note: str, parent: bool = False) -> None:
        self.rank, self.step, self.note, self.parent = rank, step, note, parent

    def on_train_batch_start(self, trainer, *_):
        if attempt() == 0 and (trainer.global_rank, trainer.global_step) == (self.rank, self.step):
            Path(self.note).write_text(str(time.time()))
            os.kill(os.getppid() if self.parent else os.getpid(), signal.SIGTERM)


class NotANumber(Callback):
    """From one step up to another, a picture of one rank holds NaN; ``rank`` -1: that step's gradients are dropped."""

    def __init__(self, rank: int, first: int, last: int) -> None:
        self.rank, self.steps = rank, range(first, last + 1)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_rank == self.rank and trainer.global_step in self.steps:
            batch["image"] = pl_module.network.normalise(batch["image"])
            batch["image"][1, 0, 3, 3] = float("nan")

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.rank < 0 and trainer.global_step in self.steps:
            optimizer.zero_grad()


class Freeze(Fault):
    """Stopped from outside, as by a debugger or a paused container."""

    def happen(self):
        os.kill(os.getpid(), signal.SIGSTOP)


class SkipTheLoss(Fault):
    """One step whose loss this rank computes without the others: a collective call that it does not make."""

    def on_train_batch_start(self, trainer, pl_module, *_):
        self.module = pl_module
        super().on_train_batch_start(trainer)

    def happen(self):
        module, step = self.module, self.module.training_step

        def alone(*_):
            module.training_step = step
            return sum(parameter.sum() for parameter in module.parameters()) * 0

        module.training_step = alone


class SampleIds(Callback):
    """Appends a line ``step id`` for each sample that this rank trains on to ``folder``/rank."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.folder.mkdir(exist_ok=True)
        with (self.folder / str(trainer.global_rank)).open("a") as file:
            file.writelines(f"{trainer.global_step} {identity}\n" for identity in batch["id"])


class WaitForCut(Fault):
    """Waits within a step until what was noted has been taken away: until the link is cut."""

    def happen(self):
        while Path(self.note).exists():
            time.sleep(0.05)


class KillInSave(Callback):
    """Kill -9 from within the write of one step's checkpoint, after so many of its bytes; no other save is touched."""

    def __init__(self, step: int, share: float, size: int, note: str) -> None:
        self.step, self.offset, self.note = step, int(share * size), note

    def on_train_batch_end(self, trainer, *_):
        # Callbacks that save have their turn after all others.
        if trainer.global_step == self.step:
            kill_at_byte(self.offset, before=lambda: Path(self.note).write_text(str(time.time())))


def kill_at_byte(offset, before=lambda: None):
    """From now on this process dies when it has written ``offset`` bytes of a checkpoint."""
    write = checkpoint._HashingFile.write

    def dying(hashing, data):
        left = offset - hashing.size
        if len(data) < left:
            return write(hashing, data)
        write(hashing, memoryview(data)[:left])
        hashing.flush()
        before()
        os.kill(os.getpid(), signal.SIGKILL)
        return 0

    checkpoint._HashingFile.write = dying


class FillDisk(Fault):
    """Not a byte is left on the disk of ``ballast`` from one step on, until another step or the ballast's end."""

    def __init__(self, step: int, ballast: str, note: str, until: int = -1) -> None:
        super().__init__(0, step, note)
        self.ballast, self.until = Path(ballast), until

    def on_train_batch_start(self, trainer, *arguments):
        super().on_train_batch_start(trainer, *arguments)
        if trainer.global_step == self.until:
            self.ballast.unlink()

    def happen(self):
        with self.ballast.open("wb", buffering=0) as file, suppress(OSError):
            while file.write(bytes(2**16)):
                pass


class MakeReadOnly(Fault):
    """A folder can be read only, from one step on: a read-only mount of itself lies over it."""

    def __init__(self, step: int, folder: str, note: str) -> None:
        super().__init__(0, step, note)
        self.folder = folder

    def happen(self):
        for options in (["--bind", self.folder, self.folder], ["-o", "remount,bind,ro", self.folder]):
            subprocess.run(["mount", *options], check=True)


class Disturb(Callback):
    """A signal to this process if it is of ``rank``, at the latest so many steps after this start has begun to train.

    The process ids of all ranks are left behind in ``folder`` when training begins.
    """

    def __init__(self, rank: int, steps: int, signal_name: str, folder: str) -> None:
        self.rank, self.steps, self.number, self.folder = rank, steps, signal.Signals[signal_name], folder

    def on_train_start(self, trainer, *_):
        self.at = trainer.global_step + self.steps
        (Path(self.folder) / f"{trainer.global_rank}.pid").write_text(str(os.getpid()))

    def on_before_optimizer_step(self, trainer, *_):
        if (trainer.global_rank, trainer.global_step) == (self.rank, self.at):
            self.at = -1  # once: a second signal would leave at once
            os.kill(os.getpid(), self.number)


class KillWorker(Fault):
    """Kill -9 of one of the loading processes of a rank; the ids of all processes of all ranks are left in ``pids``."""

    def __init__(self, rank: int, step: int, note: str, pids: str) -> None:
        super().__init__(rank, step, note)
        self.pids = pids

    def on_train_batch_start(self, trainer, *arguments):
        if trainer.global_step == self.step:
            ids = [os.getpid(), *(worker.pid for worker in multiprocessing.active_children())]
            (Path(self.pids) / f"{trainer.global_rank}.pids").write_text(json.dumps(ids))
            trainer.strategy.barrier()
        super().on_train_batch_start(trainer, *arguments)

    def happen(self):
        os.kill(multiprocessing.active_children()[0].pid, signal.SIGKILL)


class BreakReading(Callback):
    """Reading one file of a folder fails in a way that nobody has thought of, in whatever process reads it."""

    def __init__(self, file: str) -> None:
        self.file = file

    def on_fit_start(self, *_):
        read = FilesSource.read

        def broken(source, index):
            if source.key(index).endswith(self.file):
                raise KeyError("what went wrong")
            return read(source, index)

        FilesSource.read = broken  # before loading processes are forked


class Lock(Fault):
    """A run directory and its checkpoints lose the permission to write."""

    def __init__(self, step: int, folder: str, note: str) -> None:
        super().__init__(0, step, note)
        self.folder = Path(folder)

    def happen(self):
        for path in (self.folder / "checkpoints", self.folder):
            path.chmod(0o555)
