"""What is exported: a checkpoint of any library as a network of ours."""

from dataclasses import dataclass
from typing import Any

from siglightning.models import TwoTower
from siglightning.models.interop import Checkpoint, build, open_checkpoint, require_source
from siglightning.models.interop.checkpoint import Kind
from siglightning.models.lora import merge_adapters


@dataclass(frozen=True)
class Source:
    """A trained network and where it comes from.

    Attributes:
        network: in evaluation mode, adapters merged into their weights.
        arguments: of :class:`~siglightning.models.TwoTower` that build it.
        checkpoint: that it was read from.
    """

    network: TwoTower
    arguments: dict[str, Any]
    checkpoint: Checkpoint


def read_source(
    source: str,
    kind: Kind | None = None,
    architecture: str | None = None,
    config: str | None = None,
    tokenizer: str | None = None,
) -> Source:
    """Read what :func:`~siglightning.models.interop.open_checkpoint` reads; nothing of it is executed.

    Args:
        source: a run, a file or a folder, or a name with its scheme.
        kind: whose it is, where that cannot be told.
        architecture: open_clip's name of the model, for a file of weights alone.
        config: ``config.yaml`` of the run, for a checkpoint of ours that lies elsewhere.
        tokenizer: for a checkpoint that does not bring its own.

    Raises:
        ValueError: no such source, one that is damaged or would have to run code, or one that does not fit the network
            that it describes.
    """
    require_source(source, "export")
    checkpoint = open_checkpoint(source, kind, architecture, config)
    given: dict[str, Any] = {} if tokenizer is None else {"tokenizer": tokenizer}
    given["init_bias"] = 0.0 if "bias" in checkpoint.weights else None  # one that had no b is exported without
    network, _ = build(checkpoint, given)
    merge_adapters(network)
    return Source(network.eval(), checkpoint.arguments | given | {"lora": None}, checkpoint)
