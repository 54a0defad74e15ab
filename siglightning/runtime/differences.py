"""In which weights a checkpoint differs from a model, in words."""

from collections.abc import Mapping, Sequence

from torch import Tensor

MAX_DIFFERENCES = 5  # parameters named in a message before it says "and N more"


def state_differences(model: Mapping[str, Tensor], checkpoint: Mapping[str, Tensor]) -> list[str]:
    """Say in which weights a checkpoint differs from a model: absent, superfluous, or of another shape."""
    differences = []
    for name, tensor in model.items():
        if name not in checkpoint:
            differences.append(f"{name} is missing from the checkpoint")
        elif isinstance(tensor, Tensor) and tensor.shape != checkpoint[name].shape:
            expected, got = list(tensor.shape), list(checkpoint[name].shape)
            differences.append(f"{name} is {expected} in the model and {got} in the checkpoint")
    differences += [f"{name} is unknown to the model" for name in checkpoint if name not in model]
    return differences


def require_same_state(model: Mapping[str, Tensor], checkpoint: Mapping[str, Tensor], name: str) -> None:
    """Refuse weights that do not fit.

    Args:
        model: the model's own state dictionary.
        checkpoint: that of the checkpoint.
        name: of the checkpoint, for the message.

    Raises:
        ValueError: the weights differ; the message names the first ones and their shapes.
    """
    differences = state_differences(model, checkpoint)
    if differences:
        raise ValueError(
            f"{name} is a checkpoint of another model: {list_differences(differences)}. "
            "Use the configuration that it was trained with (config.yaml of its run directory), "
            "or start a new run in another --run_dir."
        )


def list_differences(differences: Sequence[str]) -> str:
    """The first differences in one line, and how many more there are."""
    more = len(differences) - MAX_DIFFERENCES
    return "; ".join(differences[:MAX_DIFFERENCES]) + (f"; and {more} more" if more > 0 else "")
