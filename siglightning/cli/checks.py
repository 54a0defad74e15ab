"""What the command line refuses by itself before anything is built."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from siglightning.cli.hints import nearest
from siglightning.models.interop import require_source

COMMAND = "pipe:"  # how WebDataset is told to run what follows


def require_known(key: str, value: Any, known: Iterable[str]) -> None:
    """Refuse a strategy or accelerator that Lightning does not have, naming the nearest.

    Raises:
        ValueError: ``value`` is a name that is not in ``known``.
    """
    if isinstance(value, str) and value != "auto" and value.lower() not in (*known, "gpu", "tpu"):
        names = sorted(name for name in known if not name.startswith("_"))
        hint = nearest(value, names) or f" Known: {', '.join(names)}."
        raise ValueError(f"There is no {key} {value!r}.{hint}")


def require_file(ckpt_path: str | None) -> None:
    """Refuse a checkpoint that does not exist.

    Raises:
        ValueError: there is no such file.
    """
    if ckpt_path is not None and not Path(ckpt_path).is_file():
        raise ValueError(
            f"ckpt_path expects a checkpoint file, got {str(ckpt_path)!r}, which does not exist. "
            "Leave it out to use the newest one of --run_dir."
        )


def require_typed_commands(config: Any, typed: Sequence[str]) -> None:
    """Refuse a command of the shell, as WebDataset runs to read a tar, unless the user has typed it himself.

    Args:
        config: the whole configuration.
        typed: arguments of the command line, where names of files stand for what is in them.

    Raises:
        ValueError: a configuration file holds one.
    """
    known = set(_typed_values(typed))
    for key, value in _leaves(config):
        if isinstance(value, str) and value.startswith(COMMAND) and value not in known:
            raise ValueError(
                f"The configuration would run a command, {key}: {value}. If you wrote it or trust it, type it (--{key} "
                f"'{value}') or add --trust_imports webdataset."
            )


def _typed_values(arguments: Sequence[str]) -> Iterator[Any]:
    """What was typed as a value, and what is in values that are YAML."""
    for argument in arguments:
        text = argument.partition("=")[2] if argument.startswith("--") else argument
        yield text
        with suppress(yaml.YAMLError):
            yield from (leaf for _, leaf in _leaves(yaml.safe_load(text)) if isinstance(leaf, str))


def _leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """All values of a parsed configuration, within lists and classes, too, by their keys."""
    if isinstance(value, Namespace):
        value = vars(value)
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _leaves(inner, prefix)
    else:
        yield prefix, value


def require_one_beginning(init_from: str | None, ckpt_path: str | None) -> None:
    """Refuse weights to begin with that are not there, or besides a whole checkpoint.

    Raises:
        ValueError: one of these.
    """
    if init_from is None:
        return
    if ckpt_path is not None:
        raise ValueError(
            f"--init_from begins a run with the weights of {init_from}, --ckpt_path goes on with all of {ckpt_path}. "
            "Give one of them."
        )
    require_source(init_from, "init_from")
