"""Losses: contrastive ones, which form their gradients in the forward pass, and those of classifiers."""

from siglightning.losses.classification import CLASSIFICATION_LOSSES, ClassificationLoss
from siglightning.losses.modules import SigmoidLoss, SoftmaxLoss
from siglightning.losses.negatives import Negatives
from siglightning.losses.sigmoid import sigmoid_loss
from siglightning.losses.softmax import softmax_loss

__all__ = [
    "CLASSIFICATION_LOSSES",
    "ClassificationLoss",
    "Negatives",
    "SigmoidLoss",
    "SoftmaxLoss",
    "sigmoid_loss",
    "softmax_loss",
]
