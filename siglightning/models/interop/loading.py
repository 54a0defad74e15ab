"""A TwoTower from a checkpoint of any library."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from siglightning.models.foreign import refusing
from siglightning.models.interop.checkpoint import Checkpoint, Kind
from siglightning.models.interop.source import open_checkpoint
from siglightning.models.lora import Lora, is_adapter
from siglightning.models.positions import PatchGrid, resize_tables
from siglightning.models.saliency import SaliencyMasking
from siglightning.models.two_tower import TwoTower
from siglightning.runtime.differences import list_differences, state_differences

_TOWER = "image_tower."


def load_two_tower(
    source: str | Path,
    *,
    kind: Kind | None = None,
    architecture: str | None = None,
    config: str | None = None,
    image_size: int | None = None,
    context_length: int | None = None,
    tokenizer: str | None = None,
    canonicalize: bool | None = None,
    init_bias: float | Literal["auto"] | None = "auto",
    micro_batch_size: int | None = None,
    freeze_image: bool = False,
    freeze_text: bool = False,
    lora: Lora | None = None,
    saliency: SaliencyMasking | None = None,
) -> TwoTower:
    """Build a two-tower model from a checkpoint of transformers, open_clip or big_vision, or of ours.

    Towers, projections, t', b, tokenizer and the preparation of pictures are those of the checkpoint. t' is kept as it
    is, beyond log 100 too. In a configuration this function stands where ``TwoTower`` would: ``class_path:
    siglightning.models.load_two_tower``.

    Args:
        source: name, file or folder, see :func:`~siglightning.models.interop.source.open_checkpoint`.
        kind: whose it is, where that cannot be told.
        architecture: open_clip's name of the model, for a file of weights alone.
        config: ``config.yaml`` of the run, for a checkpoint of ours that lies elsewhere.
        image_size: side of the square input in pixels; another one than the checkpoint's resizes its position
            embeddings. ``None`` keeps it.
        context_length: tokens a caption; ``None`` keeps the checkpoint's.
        tokenizer: source, see :class:`~siglightning.models.tokenizers.Tokenizer`; ``None`` takes the checkpoint's.
        canonicalize: let the tokenizer lower-case captions and strip punctuation; ``None`` as the checkpoint has it.
        init_bias: of a checkpoint without b, trained with a softmax: a number, or ``"auto"`` for -log(B - 1) of the
            batch when training begins. ``None`` makes no bias and drops the checkpoint's, as the softmax loss wants.
        micro_batch_size: as in :class:`TwoTower`.
        freeze_image: as in :class:`TwoTower`.
        freeze_text: as in :class:`TwoTower`.
        lora: as in :class:`TwoTower`.
        saliency: as in :class:`TwoTower`.

    Raises:
        ValueError: the checkpoint cannot be had, is damaged, would have to run code, or does not fit; the message names
            the first differing weights and their shapes.
    """
    checkpoint = open_checkpoint(source, kind, architecture, config)
    own: dict[str, Any] = {
        "image_size": image_size,
        "context_length": context_length,
        "tokenizer": tokenizer,
        "canonicalize": canonicalize,
        "micro_batch_size": micro_batch_size,
        "lora": lora,
        "saliency": saliency,
    }
    given = {name: value for name, value in own.items() if value is not None}
    frozen = {"freeze_image": freeze_image, "freeze_text": freeze_text}
    network, resized = build(checkpoint, given | frozen | {"init_bias": init_bias})
    _tell(network, checkpoint, resized)
    return network


def build(checkpoint: Checkpoint, given: Mapping[str, Any]) -> tuple[TwoTower, list[str]]:
    """The network that a checkpoint describes, with its weights.

    Args:
        checkpoint: as :func:`~siglightning.models.interop.source.open_checkpoint` reads it.
        given: arguments of TwoTower that go before the checkpoint's own.

    Returns:
        The network, and which tables of positions were resized, in words.

    Raises:
        ValueError: the tokenizer is not known, or the checkpoint does not fit the network that it describes.
    """
    with refusing(checkpoint.source):
        require_tokenizer(checkpoint, given)
        network = TwoTower(**(checkpoint.arguments | dict(given)))
        if checkpoint.preparation is not None:
            tower, own = network.image_tower, checkpoint.preparation
            tower.mean, tower.std, tower.resizing = own.mean, own.std, own.resizing
            network.resizing = own.resizing
        _require_colours(network)
        return network, load_into(network, checkpoint)


def _require_colours(network: TwoTower) -> None:
    """Refuse a mean and deviation that no picture can be normalised with; libraries read anything there."""
    mean, std = network.image_tower.mean, network.image_tower.std
    numbers = torch.tensor([mean, std])  # refuses what is no number
    if numbers.shape != (2, 3) or not numbers.isfinite().all() or (numbers[1] <= 0).any():
        raise ValueError(f"Pictures would be normalised with mean {mean} and deviation {std}; expected three of each.")


def load_into(network: TwoTower, checkpoint: Checkpoint) -> list[str]:
    """Load a checkpoint into a network of its architecture; position embeddings are resized to the network's.

    Returns:
        Which tables were resized, in words.

    Raises:
        ValueError: weights that the network does not have, that it misses, or of other shapes.
    """
    model = network.state_dict()
    weights = _adapted(model, checkpoint.weights)
    if network.bias is None:
        weights.pop("bias", None)
    grid = PatchGrid.of(network.image_tower)
    resized = (
        [] if grid is None else resize_tables({n: t for n, t in model.items() if n.startswith(_TOWER)}, weights, grid)
    )
    optional = {name for name in model if name == "bias" or is_adapter(name)}
    required = {name: tensor for name, tensor in model.items() if name in weights or name not in optional}
    differences = state_differences(required, weights)
    if differences:
        raise ValueError(
            f"{checkpoint.source} does not fit the network that it describes: {list_differences(differences)}. Check "
            "`architecture`, or that config and weights are of one model."
        )
    network.load_state_dict(weights, strict=False)
    return resized


def _adapted(model: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights by the names of a model to whose layers adapters were added."""
    renamed = {name.replace(".base_layer.", "."): name for name in model}
    return {name if name in model else renamed.get(name, name): tensor for name, tensor in weights.items()}


def require_tokenizer(checkpoint: Checkpoint, given: Mapping[str, Any]) -> None:
    """Refuse a checkpoint that neither holds nor names its tokenizer, before one is asked for on a hub.

    Raises:
        ValueError: it is of big_vision, with a vocabulary that nobody published, and none is given.
    """
    if checkpoint.kind == "big_vision" and not {"tokenizer"} & {*checkpoint.arguments, *given}:
        raise ValueError(
            f"{checkpoint.source} does not hold its tokenizer, and its vocabulary is none of the published ones: give "
            "`tokenizer`, the path of the SentencePiece model that it was trained with."
        )


def _tell(network: TwoTower, checkpoint: Checkpoint, resized: list[str]) -> None:
    from siglightning.runtime.processes import notice  # loads Lightning

    if network.bias is None:
        told = "no b"
    elif "bias" in checkpoint.weights:
        told = f"b = {network.bias.item():.5g}"
    elif network.bias_is_auto:
        told = "b by rule, -log(B - 1) of the batch when training begins, since the checkpoint has none (softmax)"
    else:
        told = f"b = {network.bias.item():.5g} as asked for, since the checkpoint has none (softmax)"
    notice(f"Loaded {checkpoint.source} ({checkpoint.kind}): t' = {network.log_scale.item():.5g}, {told}")
    for table in resized:
        notice(f"  resized: {table}")
