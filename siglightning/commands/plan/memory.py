"""What one device holds during training, piece by piece, from sizes alone.

Pieces, with P parameters, T of them trained, D devices, n = B / D pairs on each, width d of the embeddings::

    weights     P * bytes(weights)
    gradients   T * bytes(weights)                     gradient buckets are views of them
    optimizer   the tensors of its state after one step
    batch       n * (3 side**2 + 8 L)                  uint8 pictures and int64 ids; stored features 4 width
    activations what autograd saves (siglightning.models.footprint): both towers on n pairs; or, in slices of m, the
                larger one on m, and the embeddings of all: see activation_bytes
    loss        see loss_bytes
    update      T * bytes(weights)                     weights before, which become their change, for train/update_norm

The forward pass and the backward pass hold batch, activations and loss; the update begins when those are gone. So the
peak is ``weights + gradients + optimizer + max(batch + activations + loss, update)``. Left out, since they are the
allocator's and the libraries' own: the context of the device, workspaces, temporaries of the backward pass, holes.
"""

from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from siglightning.losses.inputs import DEFAULT_CHUNK_SIZE, compute_dtype
from siglightning.models.footprint import Precision, Saved


@dataclass(frozen=True)
class Shape:
    """What a step of a model needs, whatever the devices.

    Attributes:
        weights: bytes of all parameters and buffers.
        gradients: bytes of the gradients of those that are trained.
        largest: bytes of the largest of these gradients, usually the token embedding's.
        optimizer: bytes of the optimizer's state.
        image: what the image tower saves.
        text: what the text tower saves.
        sample: bytes of one sample of a batch.
        embed_dim: width of the embeddings.
        precision: of the run.
    """

    weights: int
    gradients: int
    largest: int
    optimizer: int
    image: Saved
    text: Saved
    sample: int
    embed_dim: int
    precision: Precision


@dataclass(frozen=True)
class Forecast:
    """Bytes on one device, see the head of this file."""

    weights: int
    gradients: int
    optimizer: int
    batch: int
    activations: int
    loss: int
    update: int

    @property
    def peak(self) -> int:
        """The most that is held at once."""
        step = self.batch + self.activations + self.loss
        return self.weights + self.gradients + self.optimizer + max(step, self.update)


def forecast(
    shape: Shape, pairs: int, world_size: int, micro_batch_size: int | None = None, chunk_size: int | None = None
) -> Forecast:
    """Bytes on one of ``world_size`` devices with ``pairs`` pairs each.

    Args:
        shape: of model and run.
        pairs: on each device, n.
        world_size: devices.
        micro_batch_size: pairs in a slice; ``None``: all at once.
        chunk_size: side of a tile of the loss; ``None``: the default.
    """
    return Forecast(
        shape.weights,
        shape.gradients,
        shape.optimizer,
        shape.sample * pairs,
        activation_bytes(shape, pairs, micro_batch_size),
        loss_bytes(pairs, world_size, shape.embed_dim, shape.precision.embeddings, chunk_size),
        shape.gradients,
    )


def activation_bytes(shape: Shape, pairs: int, micro_batch_size: int | None) -> int:
    """What the towers keep at the most.

    All at once both towers' savings are there when the loss is computed. In slices nothing but embeddings is: a slice
    is computed again in the backward pass, one tower at a time, and ``n`` embeddings wait on either side, with their
    gradients. Each slice forms its own gradient of a parameter before adding it to the others', the largest one when
    next to nothing of the slice is left. Half-precision copies of weights are made once for both.
    """
    copies = shape.image.fixed + shape.text.fixed
    if micro_batch_size is None:
        return copies + (shape.image.per_sample + shape.text.per_sample) * pairs
    waiting = 4 * pairs * shape.embed_dim * shape.precision.embeddings.itemsize
    per_sample = max(shape.image.per_sample, shape.text.per_sample)
    return copies + waiting + max(per_sample * min(micro_batch_size, pairs), shape.largest)


def loss_bytes(
    pairs: int, world_size: int, embed_dim: int, dtype: torch.dtype = torch.float32, chunk_size: int | None = None
) -> int:
    """What the sigmoid loss holds beside its inputs, with n pairs of width d on each of D devices.

    Three tiles of at most ``chunk_size**2``, two of them buffers and one for sums; gradients of images and of texts,
    ``n d`` each; and in the type of the arithmetic, where it is not that of the inputs, a copy of either. Round a ring,
    further: two blocks of texts under way, and three accumulators of their gradients in the place of one. The softmax
    loss has a few numbers a row more.
    """
    precise = compute_dtype(dtype).itemsize
    side = min(chunk_size or DEFAULT_CHUNK_SIZE, pairs)
    block = pairs * embed_dim
    own = 2 * block * precise + (2 * block * precise if precise != dtype.itemsize else 0)
    travelling = 0 if world_size == 1 else 2 * block * dtype.itemsize + 2 * block * precise
    return 3 * side**2 * precise + own + travelling


def state_bytes(optimizer: Optimizer) -> int:
    """Bytes of an optimizer's state after one step with gradients for everything; parameters on the meta device.

    Nothing is computed there but shapes, so this is the state of any optimizer that a configuration names.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = torch.empty_like(parameter)
    optimizer.step()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            parameter.grad = None
    states = (value for state in optimizer.state.values() for value in state.values())
    return sum(value.numel() * value.itemsize for value in states if isinstance(value, torch.Tensor))


def parameter_bytes(module: nn.Module, itemsize: int, *, trained: bool = False) -> int:
    """Bytes of a module's parameters and buffers, or of its trained parameters alone, at so many bytes a number."""
    parameters = [p for p in module.parameters() if p.requires_grad or not trained]
    buffers = [] if trained else [*module.buffers()]
    return sum(p.numel() for p in parameters) * itemsize + sum(b.numel() * b.itemsize for b in buffers)


def largest_micro_batch(shape: Shape, pairs: int, world_size: int, limit: int, chunk_size: int | None) -> int | None:
    """The largest slice whose forecast stays within ``limit`` bytes and that divides ``pairs``; ``None``: none does.

    ``pairs`` itself stands for the whole batch at once, without slices.
    """
    if forecast(shape, pairs, world_size, None, chunk_size).peak <= limit:
        return pairs
    divisors = (size for size in range(pairs - 1, 0, -1) if pairs % size == 0)
    fitting = (size for size in divisors if forecast(shape, pairs, world_size, size, chunk_size).peak <= limit)
    return next(fitting, None)
