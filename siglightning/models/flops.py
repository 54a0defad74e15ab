"""Floating-point operations of towers, counted while they run, and of whole training steps."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from siglightning.models.image_encoder import ImageEncoder
from siglightning.models.two_tower import TwoTower


@dataclass(frozen=True)
class TowerFlops:
    """Floating-point operations of one batch; a multiplication and an addition count as two.

    Attributes:
        forward: of the features, in training mode, whatever selects tokens included.
        step: of the features and the gradients of all parameters that learn.
    """

    forward: int
    step: int


def tower_flops(tower: nn.Module, inputs: Tensor) -> TowerFlops:
    """Count what a tower computes in training; on ``torch.device("meta")`` nothing is computed in earnest.

    Matrix products, convolutions and attention count; norms, activations, sorting and gathering do not
    (:mod:`torch.utils.flop_counter`). The tower's mode and the ``grad`` of its parameters stay as they are.

    Args:
        tower: on any device.
        inputs: normalised pictures ``[B, 3, H, W]``, or whatever it reads, on the same device.
    """
    was_training, parameters = tower.training, list(tower.parameters())
    gradients = [parameter.grad for parameter in parameters]
    counter = FlopCounterMode(display=False)
    tower.train().zero_grad(set_to_none=True)
    try:
        with torch.enable_grad(), counter:
            features = tower(inputs)
            forward = counter.get_total_flops()
            if features.requires_grad:
                features.sum().backward()  # torch.autograd.grad does not go with the counter's hooks on parameters
    finally:
        tower.train(was_training)
        for parameter, gradient in zip(parameters, gradients, strict=True):
            parameter.grad = gradient
    return TowerFlops(forward, counter.get_total_flops())


def step_flops(network: ImageEncoder, batch: Mapping[str, Any], world_size: int = 1) -> int:
    """Floating-point operations that a training step needs for the batch of one process.

    Forward and backward passes of both towers and their projections, where the batch holds what they read (pictures,
    captions) and not their stored features; a frozen tower's forward pass alone, and of a tower that is trained in part
    what its gradients need. For captions the products of the pairwise loss, too: logits, and the gradient of each side
    that has one. What an implementation does twice does not count: slices under activation checkpointing, and fused
    attention, whose backward pass computes its logits again. Neither do norms, activations, a classifier's head and the
    optimizer.

    Args:
        network: on any device; compiled or not. It stays as it is.
        batch: of this process; shapes and kinds are looked at, no numbers.
        world_size: processes with such a batch, whose captions are all compared with.

    Raises:
        RuntimeError: a tower cannot run without numbers (``torch.device("meta")``), whatever else it raises then.
    """
    halves = {"image": nn.Sequential(network.image_tower)}
    if isinstance(network, TwoTower):
        halves["image"].append(network.image_projection)
        halves["text"] = nn.Sequential(network.text_tower, network.text_projection)
    total = 0
    for name, half in halves.items():
        # Captions come beside their stored features, pictures do not.
        if name in batch and f"{name}_embed" not in batch:
            total += len(batch[name]) * _sample_flops(half, batch[name])
    if not isinstance(network, TwoTower) or "text" not in batch:
        return total
    products = 1 + sum(any(p.requires_grad for p in half.parameters()) for half in halves.values())
    return total + products * 2 * len(batch["text"]) ** 2 * world_size * network.embed_dim


def _sample_flops(half: nn.Module, samples: Tensor) -> int:
    """Of one sample; two are counted, since BatchNorm takes no single one in training."""
    kind = next((p.dtype for p in half.parameters() if p.is_floating_point()), torch.float32)
    kind = torch.int64 if samples.dtype == torch.int64 else kind  # pictures are normalised to the tower's
    two = torch.empty((2, *samples.shape[1:]), dtype=kind, device="meta")
    with torch.random.fork_rng(devices=[]), sdpa_kernel(SDPBackend.MATH):
        return tower_flops(_without_numbers(half), two).step // 2


def _without_numbers(module: nn.Module) -> nn.Module:
    """A copy on ``torch.device("meta")``, which takes no memory for weights; tied ones stay tied."""
    known: dict[int, Any] = {}
    for parameter in module.parameters():
        known[id(parameter)] = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
    for buffer in module.buffers():
        known[id(buffer)] = torch.empty_like(buffer, device="meta")
    return copy.deepcopy(module, known)
