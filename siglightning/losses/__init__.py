"""Contrastive losses: pure functions of tensors that form their gradients in the forward pass."""

from siglightning.losses.sigmoid import SigmoidLoss, sigmoid_loss
from siglightning.losses.softmax import SoftmaxLoss, softmax_loss

__all__ = ["SigmoidLoss", "SoftmaxLoss", "sigmoid_loss", "softmax_loss"]
