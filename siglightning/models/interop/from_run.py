"""Two-tower models that a run of this package trained: a run directory, or one of its checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from siglightning.models.interop.checkpoint import Checkpoint
from siglightning.models.towers import TowerConfig
from siglightning.models.two_tower import TwoTower

_PREFIX = "network."
_NOT_OF_THE_WEIGHTS = ("freeze_image", "freeze_text", "micro_batch_size")  # how that run trained


def is_run(path: Path) -> bool:
    """Whether a path is the directory of a run, or a checkpoint of one."""
    return (path.is_dir() and (path / "checkpoints").is_dir()) or (path.is_file() and path.suffix == ".ckpt")


def from_run(path: Path) -> Checkpoint:
    """Read the best or else newest intact checkpoint of a run, or the file that is given.

    The network is described by ``config.yaml`` of the run directory, which is read as data: only our own networks can
    be named in it.

    Raises:
        ValueError: no intact checkpoint, no ``config.yaml`` beside it, or a run without a text tower.
    """
    from siglightning.runtime.checkpoint import find_checkpoint, read_weights  # loads Lightning

    file = path if path.is_file() else find_checkpoint(path)
    network = _network_of(path if path.is_dir() else file.parent.parent, file)
    state = read_weights(file)["state_dict"]
    weights = {name.removeprefix(_PREFIX): value for name, value in state.items() if name.startswith(_PREFIX)}
    return Checkpoint(str(path), "run", _arguments(network, file), weights, file)


def _network_of(root: Path, file: Path) -> Mapping[str, Any]:
    config = root / "config.yaml"
    if not config.is_file():
        raise ValueError(
            f"{file} does not lie in a run directory: {config} is missing, which tells how its network is built. "
            "Give the run directory, or build the network yourself and begin with `--init_from`."
        )
    try:
        found: Any = yaml.safe_load(config.read_text(encoding="utf-8"))  # plain values only
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{config} is no readable configuration: {error}") from error
    for key in ("model", "init_args", "network"):
        found = found.get(key) if isinstance(found, Mapping) else None
    if not isinstance(found, Mapping) or "class_path" not in found:
        raise ValueError(f"{config} describes no network; expected model.init_args.network.class_path in it.")
    return found


def _arguments(network: Mapping[str, Any], file: Path) -> dict[str, Any]:
    name, given = str(network["class_path"]).rpartition(".")[2], dict(network.get("init_args") or {})
    ours = str(network["class_path"]).startswith("siglightning.")
    if ours and name == "load_two_tower":
        from siglightning.models.interop.source import open_checkpoint

        described = open_checkpoint(given.pop("source"), given.pop("kind", None), given.pop("architecture", None))
        arguments = described.arguments | {key: value for key, value in given.items() if value is not None}
    elif ours and name == "TwoTower":
        arguments = given
    else:
        raise ValueError(
            f"{file} is of a run with the network {network['class_path']!r}; only a TwoTower has an image and a text "
            "tower. Begin a run of the same kind with it: `--init_from`."
        )
    arguments = {key: value for key, value in arguments.items() if key not in _NOT_OF_THE_WEIGHTS}
    return _parsed(arguments)


def _parsed(arguments: dict[str, Any]) -> dict[str, Any]:
    """Plain values as the objects that TwoTower takes, by its own annotations; towers begin without their weights."""
    from jsonargparse import ArgumentParser

    towers = {name: _without_weights(arguments.pop(name)) for name in ("image_tower", "text_tower")}
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TwoTower, skip={"image_tower", "text_tower"})
    parsed = parser.instantiate(parser.parse_object(arguments))
    return towers | {name: getattr(parsed, name) for name in arguments}


def _without_weights(tower: Any) -> TowerConfig:
    config = TowerConfig(**tower) if isinstance(tower, Mapping) else TowerConfig.of(tower)
    is_package = config.scheme == "package"  # always has its weights, and knows no other way
    return TowerConfig(config.name, config.pretrained if is_package else False, config.kwargs)
