"""How good a classifier is for each class, and what it takes each class for."""

from dataclasses import dataclass

import torch
from torch import Tensor

from siglightning.evaluation.bootstrap import counts_interval
from siglightning.evaluation.classification import NO_PREDICTION, Predictions


@dataclass(frozen=True)
class ClassResult:
    """One class of an evaluation.

    Attributes:
        name: of the class.
        count: its pictures.
        right: how many of them are predicted as it, or as another of their labels.
        low: lower end of the 95 % bootstrap interval of the share.
        high: upper end.
        confused_with: the wrong class that its pictures are most often taken for; empty for none.
        confused_count: how often.
    """

    name: str
    count: int
    right: int
    low: float
    high: float
    confused_with: str
    confused_count: int

    @property
    def accuracy(self) -> float:
        """Share in [0, 1]; NaN without pictures."""
        return self.right / self.count if self.count else float("nan")


def per_class_results(predictions: Predictions, num_resamples: int = 1000, seed: int = 0) -> list[ClassResult]:
    """One entry a class, in their order.

    A picture with several labels counts for each of them, and is right for all when its prediction is any.

    Args:
        predictions: with labels, one or several a picture.
        num_resamples: of the bootstrap over each class's pictures.
        seed: of the draws.

    Raises:
        ValueError: no labels.
    """
    truths = _truths(predictions)
    classes, names = predictions.classes, predictions.class_names
    known = classes != NO_PREDICTION
    is_right = torch.zeros(len(classes), dtype=torch.bool)
    is_right[known] = truths[known].gather(1, classes[known, None]).squeeze(1)
    found = []
    for number, name in enumerate(names):
        own = truths[:, number]
        count, right = int(own.sum()), int((own & is_right).sum())
        taken_for = torch.bincount(classes[own & known & ~is_right], minlength=len(names))
        worst = int(taken_for.argmax())
        low, high = _interval(count, right, num_resamples, seed)
        confused = int(taken_for[worst])
        found.append(ClassResult(name, count, right, low, high, names[worst] if confused else "", confused))
    return found


def _truths(predictions: Predictions) -> Tensor:
    """Boolean ``[N, C]``."""
    labels, classes = predictions.labels, len(predictions.class_names)
    if labels is None:
        raise ValueError(f"Accuracy by class needs labels, got none for {len(predictions.ids)} pictures.")
    return labels > 0 if labels.ndim == 2 else torch.nn.functional.one_hot(labels, classes).bool()


def _interval(count: int, right: int, num_resamples: int, seed: int) -> tuple[float, float]:
    if not count:
        return float("nan"), float("nan")
    kinds = torch.tensor([right, count - right])
    return counts_interval(kinds, lambda drawn: drawn[:, 0] / count, num_resamples=num_resamples, seed=seed)
