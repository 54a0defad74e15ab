"""Find the configuration files that a command line names: paths, or names of files that come with the package."""

from collections.abc import Iterator, Sequence
from difflib import get_close_matches
from functools import reduce
from pathlib import Path

import yaml

import siglightning

VARIANTS = "variant"  # the folder of what is given after a recipe and changes it
_FLAGS = ("--config", "-c")


def shipped_configs() -> Path:
    """The folder of configurations that comes with the package, or with a checkout of it."""
    package = Path(siglightning.__file__).parent
    installed = package / "configs"
    return installed if installed.is_dir() else package.parent / "configs"


def resolve_config(name: str) -> str:
    """Path of the configuration that ``name`` stands for.

    Args:
        name: a path; else the name of a shipped file, such as ``quickstart`` or ``logger/wandb.yaml``, with or
            without a leading ``configs/``; else YAML or JSON text, which is returned as it is.

    Raises:
        ValueError: there is no such file; the message names the nearest ones.
    """
    if _is_text(name) or Path(name).is_file():
        return name
    root = shipped_configs()
    inner = name.removeprefix("./").removeprefix("configs/")
    for candidate in (root / inner, root / f"{inner}.yaml"):
        if candidate.is_file():
            return str(candidate)
    shipped = sorted(str(path.relative_to(root).with_suffix("")) for path in root.rglob("*.yaml"))
    near = get_close_matches(inner.removesuffix(".yaml"), shipped, n=3, cutoff=0.5)
    hint = f"Did you mean {' or '.join(near)}?" if near else f"Shipped ones: {', '.join(shipped)}."
    raise ValueError(f"There is no configuration file {name!r}, here or among the shipped ones. {hint}")


def resolve_arguments(arguments: Sequence[str]) -> list[str]:
    """Command line arguments with every ``--config`` resolved, and nulls written so that they arrive.

    Raises:
        ValueError: a configuration is missing, or ``--config`` has no value.
    """
    return list(_with_nulls(_resolved(iter(arguments))))


def _with_nulls(arguments: Iterator[str]) -> Iterator[str]:
    """Turn ``--a.b.c null`` into a configuration; to a class within a class jsonargparse hands on the word "None".

    Likewise ``--a.b.c '{d: [1, null]}'``.
    """
    left = list(arguments)
    while left:
        argument = left.pop(0)
        flag, _, value = argument.partition("=")
        is_nested = flag.startswith("--") and flag.count(".") > 1
        if is_nested and argument == flag and left and _says_null(left[0]):
            value = left.pop(0)
        yield "--config=" + _nested(flag[2:].split("."), value) if is_nested and _says_null(value) else argument


def _says_null(text: str) -> bool:
    """Whether a value is null, or a list or group with one in it."""
    if "null" not in text:
        return False
    try:
        waiting = [yaml.safe_load(text)]
    except yaml.YAMLError:
        return False
    while waiting:
        value = waiting.pop()
        if value is None:
            return True
        waiting += value.values() if isinstance(value, dict) else value if isinstance(value, list) else []
    return False


def _nested(keys: Sequence[str], value: str) -> str:
    """``{a: {b: value}}`` for the keys a and b."""
    return reduce(lambda inner, key: f"{{{key}: {inner}}}", reversed(keys), value)


def _resolved(arguments: Iterator[str]) -> Iterator[str]:
    for argument in arguments:
        flag, equals, value = argument.partition("=")
        if flag not in _FLAGS:
            yield argument
        elif equals:
            yield f"{flag}={resolve_config(value)}"
        else:
            try:
                value = next(arguments)
            except StopIteration:
                raise ValueError(f"{flag} expects a file, got nothing.") from None
            yield flag
            yield resolve_config(value)


def name_of_run(arguments: Sequence[str]) -> str | None:
    """The default name of a run: of its first configuration file, and of the variants that follow.

    ``quickstart`` for ``fit --config configs/quickstart.yaml``; ``siglip_b16_224-softmax`` for the baseline ``--config
    recipe/siglip_b16_224 --config variant/softmax``, which is another run and not the same one gone on.
    """
    files = [Path(value) for value in _config_values(arguments) if not _is_text(value)]
    return "-".join(file.stem for file in (*files[:1], *(f for f in files[1:] if f.parent.name == VARIANTS))) or None


def _config_values(arguments: Sequence[str]) -> Iterator[str]:
    values = iter(arguments)
    for argument in values:
        flag, equals, value = argument.partition("=")
        if flag in _FLAGS:
            yield value if equals else next(values, "")


def _is_text(value: str) -> bool:
    return value.lstrip().startswith("{") or "\n" in value
