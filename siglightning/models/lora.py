"""Low-rank adapters in the blocks of an image tower, by peft (Hu et al. 2021, "LoRA", arXiv:2106.09685)."""

import re
from dataclasses import dataclass
from typing import Any

from torch import nn

from siglightning.models.layers import tower_layers


@dataclass(frozen=True)
class Lora:
    """Adapters that are added to a tower's linear layers; its own weights then stay as they are.

    Args:
        rank: of the product that is added to a weight.
        alpha: the product is scaled by ``alpha / rank``.
        dropout: probability of dropping an adapter's input.
        targets: regular expression that must be found in the name of a layer within its block; by default all linear
            layers of all blocks.

    Raises:
        ValueError: a value out of range, or a pattern that is no regular expression.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.0
    targets: str = ""

    def __post_init__(self) -> None:
        if self.rank < 1 or self.alpha <= 0 or not 0 <= self.dropout < 1:
            raise ValueError(
                f"Expected lora with rank >= 1, alpha > 0 and dropout in [0, 1), got rank {self.rank}, alpha "
                f"{self.alpha} and dropout {self.dropout}."
            )
        try:
            re.compile(self.targets)
        except re.error as error:
            raise ValueError(f"lora.targets {self.targets!r} is no regular expression: {error}.") from error


def add_lora(tower: nn.Module, lora: Lora) -> None:
    """Put adapters into a tower and freeze all else in it. They begin as zero: the tower computes what it did.

    Raises:
        ValueError: peft is not installed, or no layer matches.
    """
    peft = _peft()
    targets = _linear_layers(tower, lora.targets)
    config = peft.LoraConfig(
        r=lora.rank, lora_alpha=lora.alpha, lora_dropout=lora.dropout, target_modules=targets, bias="none"
    )
    for parameter in tower.parameters():
        parameter.requires_grad_(False)
    peft.inject_adapter_in_model(config, tower)


def is_adapter(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_" in name


def merge_adapters(module: nn.Module) -> None:
    """Add adapters to the weights that they stand beside, in place; the layers then are what they were without."""
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            layer: Any = child
            if hasattr(layer, "base_layer") and hasattr(layer, "merge"):
                layer.merge()
                setattr(parent, name, layer.base_layer)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ValueError('Adapters need the package peft: pip install "siglightning[lora]".') from error
    return peft


def _linear_layers(tower: nn.Module, pattern: str) -> list[str]:
    layers = tower_layers(tower)
    # torch's own attention reads its output layer's weight without calling it: an adapter there would do nothing.
    deaf = [name for name, module in tower.named_modules() if isinstance(module, nn.MultiheadAttention)]
    found = [
        name
        for name, module in tower.named_modules()
        if isinstance(module, nn.Linear)
        and layers.number(name) in range(layers.tail)
        and re.search(pattern, name.removeprefix(layers.path))
        and not any(name.startswith(attention + ".") for attention in deaf)
    ]
    if not found:
        near = [name for name, module in tower.named_modules() if isinstance(module, nn.Linear)][-4:]
        raise ValueError(
            f"lora.targets {pattern!r} matches no linear layer in the blocks of this tower. Linear layers, for "
            f"example: {', '.join(near) or 'none'}."
        )
    return found
