"""A tiny task and its data, for tests of the command line; they resume exactly, as ours do."""

import json
import os
import signal
import threading

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.utils.data import DataLoader

from siglightning.batch import Batch
from siglightning.runtime.exits import NotFiniteError

STEPS_PER_EPOCH = 6
BATCH = 4
TINY = """
trainer:
  accelerator: cpu
  max_steps: 10
  val_check_interval: 4
  check_val_every_n_epoch: null
  log_every_n_steps: 1
  enable_progress_bar: false
  enable_model_summary: false
model: TinyTask
data: TinyData
"""


class TinyTask(LightningModule):
    """Linear regression with noise that is seeded by the step."""

    def __init__(
        self,
        width: int = 3,
        name: str = "",
        optimizer: OptimizerCallable = lambda p: torch.optim.Adam(p, lr=0.05),
    ):
        super().__init__()
        self.save_hyperparameters(ignore=["optimizer"])
        if width < 1:
            raise ValueError(f"TinyTask expects width >= 1, got {width}. Give a positive one.")
        self.layer = nn.Linear(width, 1)
        self.optimizer = optimizer

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        noise = torch.randn(BATCH, 1, generator=torch.Generator().manual_seed(self.global_step))
        loss = (self.layer(batch["image_embed"]) - batch["image_embed"].sum(1, keepdim=True) + noise).pow(2).mean()
        self.log("train/loss", loss)
        return loss

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("val/loss", self.layer(batch["image_embed"]).pow(2).mean())

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        self.log("test/loss", self.layer(batch["image_embed"]).abs().mean())

    def configure_optimizers(self):
        optimizer = self.optimizer(self.parameters())
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + 0.1 * step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class _FromHere:
    """Batches of an epoch from the trainer's position on."""

    def __init__(self, data: "TinyData") -> None:
        self.data = data

    def __len__(self) -> int:
        return STEPS_PER_EPOCH

    def __iter__(self):
        trainer = self.data.trainer
        epoch, start = divmod(trainer.global_step * trainer.accumulate_grad_batches, STEPS_PER_EPOCH)
        order = torch.randperm(STEPS_PER_EPOCH * BATCH, generator=torch.Generator().manual_seed(epoch))
        yield from order.view(STEPS_PER_EPOCH, BATCH)[start:].tolist()


class TinyData(LightningDataModule):
    """24 rows of fixed noise."""

    def __init__(self, width: int = 3, folder: str | None = None):
        super().__init__()
        self.width, self.folder = width, folder

    def setup(self, stage: str) -> None:
        if self.folder is not None and not os.path.isdir(self.folder):
            raise ValueError(f"TinyData expects a folder, got {self.folder!r}, which does not exist. Check the path.")
        rows = torch.randn(STEPS_PER_EPOCH * BATCH, self.width, generator=torch.Generator().manual_seed(1))
        self.rows = [{"image_embed": row} for row in rows]

    def train_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_sampler=_FromHere(self))

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=BATCH)

    def test_dataloader(self) -> DataLoader:
        return DataLoader(self.rows, batch_size=BATCH)


class Fail(Callback):
    """A callback that fails before a step, in one of several ways."""

    def __init__(self, step: int, failure: str = "") -> None:
        self.step, self.failure = step, failure

    def on_train_batch_start(self, trainer, *_) -> None:
        if trainer.global_step == self.step:
            self.fail()

    def fail(self):
        if self.failure == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.failure == "deaf":
            for _ in range(2):
                os.kill(os.getpid(), signal.SIGTERM)
        if self.failure == "memory":
            torch.empty(2**60)  # what the allocator says, in its own words
        if self.failure == "interrupt":
            raise KeyboardInterrupt
        if self.failure == "value":
            raise ValueError("shapes differ inside a step")
        if self.failure == "nan":
            raise NotFiniteError("The loss is nan at step 3.")
        raise RuntimeError("something broke")


def fails(step, failure=""):
    """The flag for it; a start without it goes on."""
    callback = {"class_path": "cli_examples.Fail", "init_args": {"step": step, "failure": failure}}
    return f"--config={json.dumps({'trainer': {'callbacks': [callback]}})}"


class Crash(Callback):
    """A callback that ends the run in the middle of a step, or of the validation that follows one."""

    def __init__(self, step: int, in_validation: bool = False) -> None:
        self.step, self.in_validation = step, in_validation

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.crash(trainer, in_validation=False)

    def on_validation_batch_end(self, trainer, *_) -> None:
        self.crash(trainer, in_validation=True)

    def crash(self, trainer, in_validation: bool) -> None:
        if trainer.global_step == self.step and self.in_validation == in_validation and not trainer.sanity_checking:
            raise RuntimeError("the machine is gone")


class Poison(Callback):
    """A callback that ruins one weight, once."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == self.step:
            next(pl_module.parameters()).data[0] = float("nan")


class Signal(Callback):
    """A callback that sends this process a signal: in a step, in the validation after one, or in the tests."""

    def __init__(self, name: str, step: int, where: str = "step") -> None:
        self.number, self.step, self.where = signal.Signals[name], step, where

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        self.send(trainer, "step")

    def on_validation_batch_end(self, trainer, *_) -> None:
        self.send(trainer, "validation")

    def on_test_batch_end(self, trainer, *_) -> None:
        self.send(trainer, "test")

    def on_fit_start(self, trainer, pl_module) -> None:
        self.send(trainer, "setup")

    def send(self, trainer, where: str) -> None:
        if (where, trainer.global_step) == (self.where, self.step) and not trainer.sanity_checking:
            os.kill(os.getpid(), self.number)
            self.step = -1  # once


class StandStill(Callback):
    """A callback that never returns."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_optimizer_step(self, trainer, pl_module, optimizer) -> None:
        if trainer.global_step == self.step:
            threading.Event().wait()
