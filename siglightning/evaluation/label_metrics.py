"""How good a classifier is, for pictures with one label and for pictures with several."""

import torch
from torch import Tensor

from siglightning.evaluation.bootstrap import MetricValue, mean_with_interval
from siglightning.evaluation.classification import Predictions, classification_metrics
from siglightning.evaluation.multilabel import multilabel_metrics


def hits(logits: Tensor, labels: Tensor) -> Tensor:
    """Whether the highest class is the label, or one of several; NaN in a row is none.

    Args:
        logits: float ``[B, C]``.
        labels: int64 ``[B]``, or float ``[B, C]``, multi-hot.

    Returns:
        float32 ``[B]`` of zeros and ones; their mean is the accuracy, for several labels the precision at 1.
    """
    best = logits.argmax(1)
    is_hit = labels == best if labels.ndim == 1 else labels.gather(1, best[:, None]).squeeze(1) > 0
    return (is_hit & ~logits.isnan().any(1)).float()


def label_metrics(predictions: Predictions, num_resamples: int = 1000) -> dict[str, MetricValue]:
    """Measures of a classifier, each with its chance level and a 95 % bootstrap interval.

    Args:
        predictions: with labels.
        num_resamples: of the bootstrap over pictures; 1 for a quick look.

    Returns:
        With one label a picture those of `classification_metrics`. With several ``acc``, the mean of :func:`hits` with
        the share of true labels as chance, and those of `multilabel_metrics` for labels whose probability,
        ``sigmoid(logit)``, is above one half.

    Raises:
        ValueError: no labels, or no pictures.
    """
    logits, labels = predictions.logits, predictions.labels
    if labels is None or labels.ndim == 1:
        return classification_metrics(predictions, num_resamples)
    chance = torch.mean(labels.double()).item()
    acc = mean_with_interval(hits(logits, labels)[:, None], [chance], num_resamples=num_resamples)
    return {"acc": acc[0], **multilabel_metrics(logits, labels, logits > 0, num_resamples=num_resamples)}
