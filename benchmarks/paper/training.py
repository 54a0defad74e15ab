"""One run of a study: the project's task and data under Lightning's Trainer, without files or a command line."""

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loggers.logger import Logger
from torch import nn

from benchmarks.paper.study import Settings, Values, Workspace
from siglightning.data.base import BaseDataModule
from siglightning.models import Tokenizer, TwoTower
from siglightning.optim import Schedule
from siglightning.tasks import ContrastiveTask

SETS = ("seen_concepts", "unseen_concepts")
METRICS = ("t2i_recall@1", "i2t_recall@1", "t2i_recall@5", "zeroshot_acc")
MAIN, OTHER = "seen_concepts t2i_recall@1", "unseen_concepts t2i_recall@5"
SCALAR_LR = 10.0  # t' and b must travel in some hundred steps what they do in the paper's hundred thousands


def contrastive(network: TwoTower, settings: Settings, **options: Any) -> ContrastiveTask:
    """The task of a cell.

    Equal captions are negatives like all others (``match="none"``), for the softmax loss knows nothing else.

    Args:
        network: the towers.
        settings: ``loss``, ``lr``, ``seed``; perhaps ``beta2``, ``weight_decay`` and ``negatives``.
        options: of :class:`~siglightning.tasks.ContrastiveTask`.
    """
    optimizer = partial(
        torch.optim.AdamW,
        lr=settings["lr"],
        betas=(0.9, settings.get("beta2", 0.95)),
        weight_decay=settings.get("weight_decay", 0.1),
        fused=True,
    )
    defaults: dict[str, Any] = {"match": "none", "schedule": Schedule(warmup_steps=0.1), "scalar_lr_mult": SCALAR_LR}
    return ContrastiveTask(
        network, settings["loss"], optimizer=optimizer, seed=settings["seed"], **{**defaults, **options}
    )


def initial(settings: Settings) -> dict[str, Any]:
    """Options of a network for its t' and b: the paper's, unless the settings say otherwise; softmax has no b."""
    bias = None if settings["loss"] == "softmax" else settings.get("init_bias", "auto")
    return {"init_bias": bias, "init_log_scale": settings.get("init_log_scale", math.log(10))}


def build(settings: Settings, make: Callable[..., TwoTower], *args: Any, **options: Any) -> TwoTower:
    """A network whose weights depend on the cell's seed; captions are tokenised once in a process."""
    torch.manual_seed(settings["seed"])
    network = make(*args, **initial(settings), **options)
    own = network.tokenizer
    network.tokenizer = _tokenizer(own.source, own.context_length, own.canonicalize)
    return network


@lru_cache
def _tokenizer(source: str, context_length: int, canonicalize: bool) -> Tokenizer:
    return Tokenizer(source, context_length, canonicalize)


def trainer(steps: int, workspace: Workspace, **options: Any) -> Trainer:
    """A Trainer without a bar that logs the last step only, unless told otherwise, and writes nothing."""
    defaults = {
        "max_steps": steps,
        "accelerator": "cpu",
        "logger": False,
        "log_every_n_steps": steps,
        "gradient_clip_val": 1.0,
        "limit_val_batches": 0,
    }
    quiet = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(default_root_dir=workspace.root, num_sanity_val_steps=0, **{**defaults, **quiet, **options})


def fit_and_measure(task: ContrastiveTask, data: BaseDataModule, fitting: Trainer) -> Values:
    """Train, then measure on validation and test sets.

    Returns:
        ``SET METRIC`` for validation (``val``) and both test sets, in [0, 1], and the last step's ``train/...`` values.
    """
    fitting.fit(task, data)
    values = {name: float(value) for name, value in fitting.callback_metrics.items() if name.startswith("train/")}
    fitting.limit_val_batches = 1.0
    found = dict(fitting.validate(task, data, verbose=False)[0])
    values |= {f"val {metric}": found[f"val/{metric}"] for metric in METRICS if f"val/{metric}" in found}
    return values | test_values(task, data, fitting)


def test_values(task: ContrastiveTask, data: BaseDataModule, fitting: Trainer) -> Values:
    """Metrics of both test sets as the task stands."""
    fitting.test(task, data, verbose=False)
    return {
        f"{name} {metric}": task.evaluations[name].metrics[metric].value
        for name in SETS
        for metric in METRICS
        if metric in task.evaluations[name].metrics
    }


class Curves(Logger):
    """Keeps every logged number in memory: name -> steps and values."""

    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[float]] = {}

    @property
    def name(self) -> str:
        """Nothing is written."""
        return "curves"

    @property
    def version(self) -> int:
        """Nothing is written."""
        return 0

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """The table of groups is of no use here."""

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        """Append."""
        for name, value in metrics.items():
            self.found.setdefault(name, []).append(float(value))


def num_parameters(module: nn.Module) -> int:
    """Trainable ones."""
    return sum(p.numel() for p in module.parameters() if p.requires_grad)
