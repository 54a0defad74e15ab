"""The argument parser: short errors with the nearest right name, and no import of what was not trusted."""

import inspect
import sys
from collections.abc import Iterator, Sequence
from dataclasses import MISSING, fields, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn, get_args

import torch
from jsonargparse import set_parsing_settings
from jsonargparse.typing import register_type
from lightning.pytorch import Callback, LightningDataModule, LightningModule
from lightning.pytorch.cli import LightningArgumentParser
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import Strategy
from torch.optim import Optimizer
from typing_extensions import override

from siglightning.cli.hints import Group, Vocabulary, explain

# What a configuration from a stranger may name. Whatever a class of these packages does when it is built, it does
# not run commands or load pickles; wider roots ("lightning", "torch") would reach functions that do.
TRUSTED = (
    "siglightning",
    "lightning.pytorch.callbacks",
    "lightning.pytorch.loggers",
    "lightning.pytorch.plugins",
    "lightning.pytorch.profilers",
    "lightning.pytorch.strategies",
    "lion_pytorch",
    "timm.optim",
    "torch.optim",
    "torchvision.transforms",
)
# Without it a default such as AdafactorBigVision's is saved as a word, "torch.bfloat16", that nobody can read.
register_type(
    torch.dtype,
    serializer=lambda dtype: str(dtype).removeprefix("torch."),
    deserializer=lambda name: getattr(torch, name.removeprefix("torch.")),
    fail_already_registered=False,
)
_named: set[str] = set()  # like jsonargparse's settings, those of the newest command of this process
_BASES: tuple[type, ...] = (LightningModule, LightningDataModule, Callback, Logger, Strategy, Optimizer)


def restrict_imports(trusted: Sequence[str]) -> None:
    """Let configurations name only classes of :data:`TRUSTED` and of packages that the user trusts.

    Also turns off reading configurations from URLs, which Lightning turns on.

    Args:
        trusted: packages named with ``--trust_imports``; imported here, so that their classes' short names work.

    Raises:
        ValueError: a trusted package cannot be imported.
    """
    _named.clear()
    _named.update(trusted)
    set_parsing_settings(
        config_read_mode_urls_enabled=False,
        config_read_mode_fsspec_enabled=False,
        import_path_denylist=["*"],
        import_path_allowlist=[*TRUSTED, *trusted],
    )
    if trusted and str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))  # an installed command does not look there
    for package in trusted:
        try:
            import_module(package)
        except ModuleNotFoundError as error:
            raise ValueError(
                f"--trust_imports {package}: {error}. Install it, or start where its file lies."
            ) from error


def is_trusted(package: str) -> bool:
    """Whether the user has named a package with ``--trust_imports``."""
    return package in _named


class SigParser(LightningArgumentParser):
    """Lightning's parser with errors of one line."""

    @override
    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print one line to standard error and exit with code 2."""
        sys.stderr.write(f"error: {explain(str(message), vocabulary(self))}\n")
        sys.exit(2)


def vocabulary(parser: LightningArgumentParser) -> Vocabulary:
    """All names that a command line or configuration for ``parser`` may use."""
    keys = {action.dest for parser_ in _with_subparsers(parser) for action in parser_._actions}
    classes: set[type] = {kind for base in _BASES for kind in _subclasses(base)}
    parameters = {name for kind in classes for name in _parameter_names(kind)}
    return Vocabulary(
        sorted(keys - {"help", "subcommand"}),
        sorted({kind.__name__ for kind in classes}),
        sorted(parameters),
        {kind.__name__: _group(name, kind) for base in classes for name, kind in _settings(base)},
    )


def _with_subparsers(parser: LightningArgumentParser) -> Iterator[LightningArgumentParser]:
    yield parser
    action = parser._subcommands_action
    if action is not None:
        yield from action.choices.values()


def _subclasses(base: type) -> Iterator[type]:
    children: list[type] = base.__subclasses__()
    for kind in children:
        yield kind
        yield from _subclasses(kind)


def _settings(kind: type) -> Iterator[tuple[str, type[Any]]]:
    """Data classes among what a class takes, and the arguments that they are."""
    try:
        waiting = [(name, parameter.annotation) for name, parameter in inspect.signature(kind).parameters.items()]
    except (TypeError, ValueError):
        return
    while waiting:
        name, annotation = waiting.pop()
        waiting.extend((name, inner) for inner in get_args(annotation))
        if isinstance(annotation, type) and is_dataclass(annotation):
            yield name, annotation


def _group(parameter: str, kind: type[Any]) -> Group:
    given = [each.name for each in fields(kind)]
    required = [each.name for each in fields(kind) if each.default is MISSING and each.default_factory is MISSING]
    return Group(parameter, given, required)


def _parameter_names(kind: type) -> list[str]:
    try:
        return [name for name in inspect.signature(kind).parameters if name not in ("self", "args", "kwargs")]
    except (TypeError, ValueError):
        return []
