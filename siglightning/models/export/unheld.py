"""The refusal of a format, and what all formats refuse."""

from torch import nn

from siglightning.models.two_tower import TwoTower


class UnheldError(ValueError):
    """A format cannot hold a model exactly; the message says what stands in the way."""


def kind(module: object) -> str:
    """Library and class of a module, such as ``timm's VisionTransformer``."""
    package = type(module).__module__.partition(".")[0]
    return type(module).__name__ if package == "siglightning" else f"{package}'s {type(module).__name__}"


def require_whole_tower(network: TwoTower) -> None:
    """Refuse what no other library does while it evaluates.

    Raises:
        UnheldError: patch tokens are left out in evaluation, or adapters stand in the weights.
    """
    saliency = network.image_tower.saliency
    if saliency is not None and saliency.applies(False):
        raise UnheldError("its image tower leaves out patch tokens in evaluation, too (`saliency.when: always`)")
    if any(".lora_" in name for name, _ in network.named_parameters()):
        raise UnheldError("its image tower has adapters (`lora`) beside its weights")


def activation(module: nn.Module) -> str:
    """The name under which transformers knows an activation.

    Raises:
        UnheldError: none of GELU's forms.
    """
    names = {"GELUTanh": "gelu_pytorch_tanh", "QuickGELU": "quick_gelu", "QuickGELUActivation": "quick_gelu"}
    if isinstance(module, nn.GELU) or type(module).__name__ == "GELU":
        return "gelu_pytorch_tanh" if getattr(module, "approximate", "none") == "tanh" else "gelu"
    if type(module).__name__ not in names:
        raise UnheldError(f"its activation is {kind(module)}, expected a form of GELU")
    return names[type(module).__name__]
