"""What a classifier says of whole evaluation sets, batch by batch and process by process."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from siglightning.batch import Batch
from siglightning.evaluation.classification import Predictions
from siglightning.evaluation.report import ExampleImages

SHOWN = 48  # pictures of a set that are kept to be looked at; some nine megabytes at 224 pixels
MISTAKES = 24  # likewise of the worst mistakes


@dataclass
class CollectedSet:
    """One pass over an evaluation set.

    Attributes:
        ids: of the pictures.
        logits: float32 ``[B, C]``, in pieces.
        labels: as in the batches, in pieces.
        examples: a few pictures.
        mistakes: pictures with one label whose prediction is wrong, those with the highest cross entropy.
        has_ids: whether the data tell the pictures' keys.
        repeated: pictures that were left out of the whole set since they had come before.
    """

    ids: list[str] = field(default_factory=list)
    logits: list[Tensor] = field(default_factory=list)
    labels: list[Tensor] = field(default_factory=list)
    examples: ExampleImages = field(default_factory=lambda: ExampleImages(SHOWN))
    mistakes: ExampleImages = field(default_factory=lambda: ExampleImages(MISTAKES))
    has_ids: bool = False
    repeated: int = 0

    def add(self, batch: Batch, logits: Tensor) -> None:
        """Take a batch and its logits ``[B, C]``."""
        first = len(self.ids)
        self.has_ids = "id" in batch
        self.ids.extend(ids_of(batch, first, len(logits)))
        self.logits.append(logits.float().cpu())
        if "label" in batch:
            self.labels.append(batch["label"].cpu())
        if "image" in batch:
            self.examples.offer(first, batch["image"])
            if "label" in batch and batch["label"].ndim == 1:
                self.mistakes.offer(first, batch["image"], _fitness(self.logits[-1], self.labels[-1]))

    def gathered(self, group: dist.ProcessGroup | None) -> "CollectedSet | None":
        """The whole set on the group's first process, to which all others send theirs once; else ``None``.

        Each picture counts once: one that cannot be read is replaced by another one, which also comes by itself.
        """
        if group is None:
            return self.without_repeats()
        stretches: list[Any] | None = [self] * group.size() if group.rank() == 0 else None
        dist.gather_object(self, stretches, group=group, group_dst=0)
        if stretches is None:
            return None
        joined = CollectedSet(examples=stretches[0].examples, has_ids=any(stretch.has_ids for stretch in stretches))
        for stretch in stretches:
            joined.mistakes.absorb(stretch.mistakes, len(joined.ids))
            joined.ids += stretch.ids
            joined.logits += stretch.logits
            joined.labels += stretch.labels
        return joined.without_repeats()

    def without_repeats(self) -> "CollectedSet":
        """The set without rows whose key and labels have both come before."""
        labels = torch.cat(self.labels).numpy() if self.labels else np.empty((len(self.ids), 0))
        pairs = [(key, label.tobytes()) for key, label in zip(self.ids, labels, strict=True)]
        first = {pair: row for row, pair in reversed(list(enumerate(pairs)))}
        if not self.has_ids or len(first) == len(pairs):
            return self
        rows = sorted(first.values())
        index = torch.tensor(rows)
        return CollectedSet(
            [self.ids[row] for row in rows],
            [torch.cat(self.logits)[index]],
            [torch.cat(self.labels)[index]] if self.labels else [],
            self.examples.taken(rows),
            self.mistakes.taken(rows),
            self.has_ids,
            len(pairs) - len(rows),
        )

    def predictions(self, class_names: list[str]) -> Predictions:
        """All of it.

        Raises:
            ValueError: labels without a class.
        """
        drawn = self.examples.by_row
        shown = {**drawn, **self.mistakes.by_row}
        return Predictions(
            self.ids,
            torch.cat(self.logits),
            torch.cat(self.labels) if self.labels else None,
            class_names,
            torch.stack(list(shown.values())) if shown else torch.empty(0, 3, 1, 1, dtype=torch.uint8),
            list(shown),
            len(drawn),
        )


def _fitness(logits: Tensor, labels: Tensor) -> Tensor:
    """Log share of the label, ``[B]``: lowest for the worst mistake, infinite where the prediction is right.

    Labels without a class are refused once the set is whole; here they only must not be read.
    """
    index = labels.clamp(0, logits.shape[1] - 1)[:, None]
    found = logits.log_softmax(1).gather(1, index).squeeze(1)
    is_right = (logits.argmax(1) == labels) & found.isfinite()
    return found.nan_to_num(nan=-torch.inf, neginf=-torch.inf).masked_fill(is_right, torch.inf)


def ids_of(batch: Batch, first: int, count: int) -> list[str]:
    """Keys of a batch's pictures as text; where there are none, their numbers from ``first`` on."""
    ids = batch.get("id")
    if ids is None:
        return [str(first + offset) for offset in range(count)]
    return [str(key) for key in (ids.tolist() if isinstance(ids, Tensor) else ids)]
