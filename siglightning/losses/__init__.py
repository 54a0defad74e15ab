"""Contrastive losses: pure functions of tensors that form their gradients in the forward pass."""

from siglightning.losses.modules import SigmoidLoss, SoftmaxLoss
from siglightning.losses.sigmoid import sigmoid_loss
from siglightning.losses.softmax import softmax_loss

__all__ = ["SigmoidLoss", "SoftmaxLoss", "sigmoid_loss", "softmax_loss"]
