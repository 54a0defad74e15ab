"""What is examined: a run as ``fit`` would begin it, on the first of its processes."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import cast

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader

from siglightning.batch import Batch
from siglightning.commands.doctor.findings import NotApplicableError
from siglightning.commands.doctor.origin import Origin
from siglightning.commands.plan.memory import state_bytes
from siglightning.data import BaseDataModule, Collate, Sample
from siglightning.models import ImageEncoder
from siglightning.optim import build_optimizer
from siglightning.tasks import ContrastiveTask
from siglightning.tasks.base import BaseTask
from siglightning.tasks.classifier import ClassifierTask
from siglightning.tasks.embeddings import embed_images, embed_texts

MAX_PAIRS = 256  # of the first batch that are loaded
EMBEDDING_S = 5.0  # seconds after which no more of them are embedded
_AT_ONCE = 16  # pairs


@dataclass(frozen=True)
class First:
    """The beginning of the first batch.

    Attributes:
        samples: as the data set gives them.
        batch: of them, on the device, colours applied.
        truncated: captions among them that were longer than the context.
    """

    samples: list[Sample]
    batch: Batch
    truncated: int


@dataclass
class Case:
    """A run that has not begun, and what several checks look at.

    Attributes:
        task: on its device, set up.
        datamodule: set up.
        trainer: which has started no process.
        run_dir: where the run would write.
        keep_last: checkpoints that it keeps.
        origin: of the weights.
        samples: pictures of each set that are looked at.
        pages: what the names of pictures begin with; ``None``: none are written.
        start_step: where an unfinished run would go on.
    """

    task: LightningModule
    datamodule: LightningDataModule
    trainer: Trainer
    run_dir: Path
    keep_last: int
    origin: Origin
    samples: int = 1000
    pages: Path | None = None
    start_step: int = 0

    @property
    def data(self) -> BaseDataModule:
        """The data, if they are of this package's kind."""
        if not isinstance(self.datamodule, BaseDataModule):
            raise NotApplicableError(f"{type(self.datamodule).__name__} is no siglightning.data.BaseDataModule")
        return self.datamodule

    @property
    def base_task(self) -> BaseTask:
        """The task, if it is of this package's kind."""
        if not isinstance(self.task, BaseTask) or not isinstance(getattr(self.task, "network", None), ImageEncoder):
            raise NotApplicableError(f"{type(self.task).__name__} is no task of this package")
        return self.task

    @property
    def contrastive(self) -> ContrastiveTask:
        """The task, if it compares pictures and captions."""
        if not isinstance(self.task, ContrastiveTask):
            raise NotApplicableError(f"{type(self.task).__name__} compares no pictures with captions")
        return self.task

    @property
    def world_size(self) -> int:
        """Processes of the run."""
        return self.trainer.world_size

    @property
    def local_processes(self) -> int:
        """Processes on this machine."""
        return max(1, self.world_size // self.trainer.num_nodes)

    @property
    def share(self) -> int:
        """Samples of a global batch on each process."""
        return self.data.global_batch_size // self.world_size

    @property
    def device(self) -> torch.device:
        """Of the first process."""
        return self.trainer.strategy.root_device

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run; see :attr:`siglightning.tasks.base.BaseTask.total_steps`."""
        return self.base_task.total_steps

    @cached_property
    def loader(self) -> DataLoader[Sample]:
        """Of the training data, as ``fit`` makes it for the first process."""
        return self.data.train_dataloader()

    @cached_property
    def optimizer(self) -> Optimizer:
        """As ``fit`` makes it; it is never stepped."""
        return self._build_optimizer()

    @cached_property
    def optimizer_bytes(self) -> int:
        """Of the optimizer's state after a step, which a second one takes on the meta device."""
        optimizer = self._build_optimizer()
        for group in optimizer.param_groups:
            group["params"] = [on_meta(parameter) for parameter in group["params"]]
            if "fused" in group:  # such kernels do not know the meta device; the state is the same without
                group["fused"] = False
        return state_bytes(optimizer)

    @cached_property
    def first(self) -> First:
        """Up to :data:`MAX_PAIRS` samples of the first process's share of the first batch."""
        keys = next(iter(self.loader.batch_sampler))[:MAX_PAIRS]  # type: ignore[arg-type]  # always one of ours
        samples = self.data.train_set.__getitems__(keys)
        spec = getattr(self.task, "input_spec", None)
        loaded = Collate(None if spec is None else spec.tokenizer)(samples)
        truncated = loaded.pop("truncated", 0)
        batch = self.data.on_after_batch_transfer(self.data.transfer_batch_to_device(loaded, self.device, 0), 0)
        return First(samples, batch, truncated)

    @cached_property
    def embedded(self) -> tuple[Tensor, Tensor, Tensor | None]:
        """Unit embeddings ``[n, d]`` of the first pairs and their match ids; as many as :data:`EMBEDDING_S` allow."""
        network, batch = self.contrastive.network, self.first.batch
        rows, start = 0, time.monotonic()
        images, texts = [], []
        with self.evaluating():
            while rows < len(batch["text"]) and (rows < _AT_ONCE or time.monotonic() - start < EMBEDDING_S):
                part = rows_of(batch, rows, rows + _AT_ONCE)
                images.append(embed_images(network, part))
                texts.append(embed_texts(network, part))
                rows += len(part["text"])
        ids = batch.get("match_id")
        return torch.cat(images), torch.cat(texts), None if ids is None else ids[:rows]

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode, no gradients, the run's precision."""
        self.task.eval()
        try:
            with torch.no_grad(), self.trainer.precision_plugin.forward_context():
                yield
        finally:
            self.task.train()

    def _build_optimizer(self) -> Optimizer:
        task = self.base_task
        convention = task.weight_decay_convention
        return build_optimizer(task, task.optimizer_factory, task.rules, task.scalar_lr_mult, convention, task.parts())

    @property
    def classifier(self) -> ClassifierTask:
        """The task, if it is a classifier."""
        if not isinstance(self.task, ClassifierTask):
            raise NotApplicableError(f"{type(self.task).__name__} is no classifier")
        return self.task


def rows_of(batch: Batch, first: int, end: int) -> Batch:
    """Some rows of a training batch, whose captions and pictures have the same rows."""
    return cast(Batch, {name: value[first:end] for name, value in batch.items()})  # type: ignore[index]


def on_meta(parameter: nn.Parameter) -> nn.Parameter:
    """A parameter of the same shape and type, without numbers."""
    return nn.Parameter(torch.empty_like(parameter, device="meta"), requires_grad=parameter.requires_grad)
