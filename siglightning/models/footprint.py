"""What a model keeps for its backward pass, counted without hardware and without memory.

The towers run on fake tensors of a CPU: shapes, types and what autograd saves are those of the real run, and no number
is computed. So nothing is estimated here but what a real allocator adds.
"""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

from siglightning.models.two_tower import TwoTower

FEW, MORE = 2, 4  # samples; a batch of one is reshaped without copies that others need


@dataclass(frozen=True)
class Precision:
    """How a run computes.

    Attributes:
        weights: type of the parameters.
        autocast: type of the products, ``None`` without mixed precision.
    """

    weights: torch.dtype = torch.float32
    autocast: torch.dtype | None = None

    @property
    def embeddings(self) -> torch.dtype:
        """Type of the embeddings that reach the loss."""
        return self.autocast or self.weights


@dataclass(frozen=True)
class Saved:
    """Bytes that one tower and its projection keep for backward, beside parameters.

    Attributes:
        fixed: whatever the batch: copies of weights in half precision.
        per_sample: more for each sample.
    """

    fixed: int = 0
    per_sample: int = 0

    def of(self, samples: int) -> int:
        """Bytes for a batch."""
        return self.fixed + self.per_sample * samples


def saved_bytes(run: Callable[[], Any], parameters: list[nn.Parameter]) -> int:
    """Bytes of the distinct storages that ``run()`` saves for backward, those of ``parameters`` left out."""
    addresses = {parameter.untyped_storage()._cdata for parameter in parameters}
    kept: dict[int, Any] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in addresses:
            kept[storage._cdata] = storage  # held, lest another one get its address
        return tensor

    with saved_tensors_hooks(pack, lambda tensor: tensor):
        result = run()
    del result
    return sum(storage.nbytes() for storage in kept.values())


def tower_footprints(network: TwoTower, precision: Precision) -> tuple[Saved, Saved]:
    """What the image tower and the text tower keep; nothing where a tower and its projection are frozen.

    Args:
        network: on any device, as ``torch.device("meta")``; a copy of it runs.
        precision: of the run.
    """
    model = copy.deepcopy(network)
    with FakeTensorMode():
        _on_fake_cpu(model, precision.weights)
        model.micro_batch_size = None  # slices are a matter of how many samples there are at a time
        model.train()

        def image(count: int) -> Tensor:
            side = model.image_size
            return model.encode_image(torch.empty(count, 3, side, side, dtype=torch.uint8))

        def text(count: int) -> Tensor:
            return model.encode_text(torch.zeros(count, model.context_length, dtype=torch.int64))

        return _footprint(image, model, precision), _footprint(text, model, precision)


def _on_fake_cpu(model: nn.Module, dtype: torch.dtype) -> None:
    """Put fake tensors in the place of parameters and buffers; tied ones stay tied."""
    fakes: dict[int, Tensor] = {}

    def fake(tensor: Tensor) -> Tensor:
        kind = dtype if tensor.is_floating_point() else tensor.dtype
        empty = torch.empty(tensor.shape, dtype=kind, device="cpu")
        return nn.Parameter(empty, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else empty

    for module in model.modules():
        for tensors in (module._parameters, module._buffers):
            for name, tensor in tensors.items():
                if tensor is not None:
                    tensors[name] = fakes.setdefault(id(tensor), fake(tensor))  # type: ignore[assignment]


def _footprint(encode: Callable[[int], Tensor], model: nn.Module, precision: Precision) -> Saved:
    few, more = (_saved_by(encode, count, model, precision) for count in (FEW, MORE))
    per_sample = (more - few) // (MORE - FEW)
    return Saved(few - per_sample * FEW, per_sample)


def _saved_by(encode: Callable[[int], Tensor], count: int, model: nn.Module, precision: Precision) -> int:
    with torch.autocast("cpu", dtype=precision.autocast, enabled=precision.autocast is not None):
        return saved_bytes(lambda: encode(count), [*model.parameters()])
