"""What is exported: the network of a run with the weights of one of its checkpoints."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from siglightning.models import TwoTower
from siglightning.models.export import build_network
from siglightning.models.lora import merge_adapters
from siglightning.runtime.checkpoint import find_checkpoint, read_weights, require_same_state

_PREFIX = "network."


@dataclass(frozen=True)
class Source:
    """A trained network and where it comes from.

    Attributes:
        network: in evaluation mode, adapters merged into their weights.
        arguments: that build it, as a configuration file holds them.
        checkpoint: whose weights it has.
        global_step: optimizer steps that they have seen.
        config: the whole configuration of the run.
        run_dir: the run's directory, or the folder of a checkpoint that lies by itself.
    """

    network: TwoTower
    arguments: dict[str, Any]
    checkpoint: Path
    global_step: int
    config: dict[str, Any]
    run_dir: Path


def read_source(path: Path, config_path: Path | None) -> Source:
    """Read a run or a checkpoint; nothing of it is executed.

    Args:
        path: a run directory, which stands for its best or else its newest intact checkpoint, or a checkpoint.
        config_path: configuration of the run; ``None`` looks for it where runs keep it.

    Raises:
        ValueError: no such run, no configuration, a network without two towers, or weights of another network.
        DamagedCheckpointError: a file that is damaged or holds more than data.
    """
    checkpoint = find_checkpoint(path)
    run_dir = checkpoint.parent.parent if checkpoint.parent.name == "checkpoints" else checkpoint.parent
    config = _read_config(config_path or run_dir / "config.yaml", checkpoint)
    arguments = _network_arguments(config)
    content = read_weights(checkpoint)
    network = build_network(arguments)
    weights = {
        name.removeprefix(_PREFIX): value for name, value in content["state_dict"].items() if name.startswith(_PREFIX)
    }
    require_same_state(network.state_dict(), weights, str(checkpoint))
    network.load_state_dict(weights)
    merge_adapters(network)
    step = int(content.get("global_step", 0))
    return Source(network.eval(), arguments | {"lora": None}, checkpoint, step, config, run_dir)


def _read_config(path: Path, checkpoint: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, yaml.YAMLError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(
            f"The network of {checkpoint} is described by the config.yaml of its run, which cannot be read ({reason}). "
            "Give it with --config FILE."
        ) from error
    if not isinstance(content, dict):
        raise ValueError(f"{path} is no configuration of a run: it holds a {type(content).__name__}.")
    return content


def _network_arguments(config: dict[str, Any]) -> dict[str, Any]:
    model = config.get("model") or {}
    network = (model.get("init_args") or {}).get("network") or {}
    kind = str(network.get("class_path", "")).rpartition(".")[2]
    arguments = network.get("init_args") or {}
    if kind != "TwoTower" or "image_tower" not in arguments or "text_tower" not in arguments:
        raise ValueError(
            f"export expects a run that trains two towers (siglightning.models.TwoTower), got "
            f"{model.get('class_path', 'no model')} with {kind or 'no network'}."
        )
    return dict(arguments)
