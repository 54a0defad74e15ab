"""Histograms of the logits of matching pairs and of all others."""

import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from siglightning.callbacks.figures import file_word
from siglightning.callbacks.logged_table import csv_text
from siglightning.evaluation import LogitHistogram, logit_histogram
from siglightning.runtime.dashboard import step_of_loggers
from siglightning.runtime.files import write_text

COLUMNS = ("low", "high", "positives", "negatives")


class LogitHistograms(Callback):
    """Counts the logits of a contrastive task after each validation, and of each test set.

    Loggers that take histograms (W&B, TensorBoard) get ``<set>/positive_logits`` and ``<set>/negative_logits``; the
    counts of the last time are ``tables/logits_<set>.csv``, with the ends of each bin. They come from the embeddings
    that the task has made for its metrics. Only the first process counts.
    """

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count the validation set."""
        if not trainer.sanity_checking:
            self._count(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Count each test set."""
        self._count(trainer, pl_module)

    def _count(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero:
            return
        for name, embedded in getattr(module, "embedded", {}).items():
            histogram = histogram_of(module, embedded)
            if histogram is not None:
                _write(Path(trainer.default_root_dir) / "tables", name, histogram)
                send_histogram(trainer, f"{name}/positive_logits", histogram.positives, histogram.edges)
                send_histogram(trainer, f"{name}/negative_logits", histogram.negatives, histogram.edges)


def histogram_of(module: LightningModule, embedded: Any) -> LogitHistogram | None:
    """The logits of a set.

    Args:
        module: with the ``network``, its t' and b.
        embedded: the set's embeddings and ids, of a contrastive task.
    """
    network: Any = module.network
    images, texts = torch.cat(embedded.images), torch.cat(embedded.texts)
    bias = 0.0 if network.bias is None else network.bias.item()
    ids = torch.cat(embedded.image_ids), torch.cat(embedded.text_ids)
    return logit_histogram(images, texts, *ids, math.exp(network.log_scale.item()), bias)


def send_histogram(trainer: Trainer, key: str, counts: Sequence[int], edges: Sequence[float]) -> None:
    """Hand counts between edges to the loggers that take them."""
    for logger in trainer.loggers:
        take: Any = getattr(logger, "log_histogram", None)
        if take is not None:
            take(key, counts, edges, step_of_loggers(trainer))


def _write(folder: Path, name: str, histogram: LogitHistogram) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    counts = zip(pairwise(histogram.edges), histogram.positives, histogram.negatives, strict=True)
    rows = [[*ends, positives, negatives] for ends, positives, negatives in counts]
    write_text(folder / f"logits_{file_word(name)}.csv", csv_text(COLUMNS, rows))
