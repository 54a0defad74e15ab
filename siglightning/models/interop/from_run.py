"""Two-tower models that a run of this package trained: a run directory, or one of its checkpoints."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from siglightning.models.foreign import refusing
from siglightning.models.interop.checkpoint import Checkpoint, Origin, Preparation
from siglightning.models.towers import TowerConfig
from siglightning.models.two_tower import TwoTower

_PREFIX = "network."
_TOWERS = ("image_tower", "text_tower")
_OBJECTS = ("lora", "saliency")  # arguments of TwoTower that are no plain values
_NOT_OF_THE_WEIGHTS = ("freeze_image", "freeze_text", "micro_batch_size")  # how that run trained


def is_run(path: Path) -> bool:
    """Whether a path is the directory of a run, or a checkpoint of one."""
    return (path.is_dir() and (path / "checkpoints").is_dir()) or (path.is_file() and path.suffix == ".ckpt")


def from_run(path: Path, config: Path | None = None) -> Checkpoint:
    """Read the best or else newest intact checkpoint of a run, or the file that is given.

    The network is described by ``config.yaml`` of the run directory, which is read as data: only our own networks can
    be named in it.

    Args:
        path: a run directory or a checkpoint.
        config: the run's ``config.yaml``, for a checkpoint that lies elsewhere; ``None`` looks beside it and above it.

    Raises:
        ValueError: no intact checkpoint, no ``config.yaml``, or a run without a text tower.
    """
    from siglightning.runtime.checkpoint import find_checkpoint, read_weights  # loads Lightning

    file = path if path.is_file() else find_checkpoint(path)
    directory = file.parent.parent if file.parent.name == "checkpoints" else file.parent
    described = config or directory / "config.yaml"
    with refusing(described):
        content = _read_config(described, file)
        arguments, preparation = _described(content, file)
    saved = read_weights(file)
    weights = {n.removeprefix(_PREFIX): value for n, value in saved["state_dict"].items() if n.startswith(_PREFIX)}
    origin = Origin(directory, content, int(saved.get("global_step", 0)))
    return Checkpoint(str(path), "run", arguments, weights, file, (file,), preparation, origin)


def _read_config(path: Path, file: Path) -> Mapping[str, Any]:
    if not path.is_file():
        raise ValueError(
            f"{file} does not lie in a run directory: {path} is missing, which tells how its network is built. Give "
            "the run directory, or that file beside the checkpoint (`config`, on the command line --config FILE)."
        )
    try:
        found: Any = yaml.safe_load(path.read_text(encoding="utf-8"))  # plain values only
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is no readable configuration: {error}") from error
    network: Any = found
    for key in ("model", "init_args", "network"):
        network = network.get(key) if isinstance(network, Mapping) else None
    if not isinstance(network, Mapping) or "class_path" not in network:
        raise ValueError(f"{path} describes no network; expected model.init_args.network.class_path in it.")
    return dict(found)


def _described(config: Mapping[str, Any], file: Path) -> tuple[dict[str, Any], Preparation | None]:
    """Arguments of the run's TwoTower, and how it prepares pictures where its towers at random do not know."""
    network = config["model"]["init_args"]["network"]
    given = {key: value for key, value in (network.get("init_args") or {}).items() if key not in _NOT_OF_THE_WEIGHTS}
    module, _, name = str(network["class_path"]).rpartition(".")
    ours = not module or module.startswith("siglightning.")
    if ours and name == "load_two_tower" and "source" in given:
        from siglightning.models.interop.source import open_checkpoint

        where = [given.pop(key, None) for key in ("source", "kind", "architecture", "config")]
        loaded = open_checkpoint(*where)
        return loaded.arguments | _parsed({k: v for k, v in given.items() if v is not None}), loaded.preparation
    if ours and name == "TwoTower" and given.keys() >= {*_TOWERS}:
        return arguments_of(given), _preparation(_tower(given["image_tower"]))
    raise ValueError(
        f"{file} is of a run with the network {network['class_path']!r}; only a TwoTower has an image and a text "
        "tower. Begin a run of the same kind with it: `--init_from`."
    )


def arguments_of(given: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of TwoTower out of plain values as a file has them; its towers begin without their own weights.

    Raises:
        ValueError: values that TwoTower does not take.
    """
    towers = {name: _without_weights(_tower(given[name])) for name in _TOWERS}
    return towers | _parsed({name: value for name, value in given.items() if name not in _TOWERS})


def _parsed(arguments: dict[str, Any]) -> dict[str, Any]:
    """Plain values as the objects that TwoTower takes, by its own annotations."""
    from jsonargparse import ArgumentError, ArgumentParser

    for name, value in arguments.items():
        _require_ours(name, value)
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(TwoTower, skip={*_TOWERS})
    try:
        parsed = parser.instantiate(parser.parse_object(arguments))
    except ArgumentError as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"These are no arguments of TwoTower: {reason[:300]}") from error
    return {name: getattr(parsed, name) for name in arguments}


def _require_ours(name: str, value: Any) -> None:
    """Refuse the name of somebody else's class, which jsonargparse would import to see what it is."""
    named = value.get("class_path") if isinstance(value, Mapping) else value if name in _OBJECTS else None
    if named is not None and not str(named).startswith("siglightning."):
        raise ValueError(f"`{name}` names the class {named!r}, and code from a checkpoint is never run.")


def _tower(tower: Any) -> TowerConfig:
    try:
        return TowerConfig(**tower) if isinstance(tower, Mapping) else TowerConfig.of(tower)
    except (TypeError, AttributeError) as error:
        raise ValueError(
            f"Expected a tower's name, or name, pretrained and kwargs; got {tower!r} ({error})."
        ) from error


def _without_weights(tower: TowerConfig) -> TowerConfig:
    is_package = tower.scheme == "package"  # always has its weights, and knows no other way
    return TowerConfig(tower.name, tower.pretrained if is_package else False, tower.kwargs)


def _preparation(tower: TowerConfig) -> Preparation | None:
    if tower.scheme != "open_clip":
        return None
    from siglightning.models.interop.from_open_clip import preparation_of

    return preparation_of(tower)
