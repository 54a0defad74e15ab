"""A trained network as files of other libraries: which formats there are, and what each can hold."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from siglightning.models.export import onnx_format, open_clip_format, safetensors_format, transformers_format
from siglightning.models.export.quiet import quiet
from siglightning.models.export.reloaded import Outputs, Reloaded
from siglightning.models.export.unheld import UnheldError
from siglightning.models.foreign import no_foreign_code
from siglightning.models.two_tower import TwoTower

__all__ = ["FORMATS", "Format", "Outputs", "Reloaded", "UnheldError", "refusal"]


@dataclass(frozen=True)
class Format:
    """How one library's files are written and read.

    Attributes:
        name: as on the command line.
        library: that reads it.
        check: raises :class:`UnheldError` for a network that it cannot hold, before anything is written.
        write: the network and its constructor's arguments into an existing, empty folder.
        reload: a folder, read by the library alone.
        settle: a folder and the place that it will be moved to; whether it names that place.
    """

    name: str
    library: str
    check: Callable[[TwoTower], None]
    write: Callable[[TwoTower, Path, dict[str, Any]], None]
    reload: Callable[[Path], Reloaded]
    settle: Callable[[Path, Path], bool]


def _format(name: str, library: str, module: ModuleType) -> Format:
    takes_arguments = module is safetensors_format

    def write(network: TwoTower, folder: Path, arguments: dict[str, Any]) -> None:
        with quiet():
            module.write(network, folder, arguments) if takes_arguments else module.write(network, folder)

    def reload(folder: Path) -> Reloaded:
        with quiet(), no_foreign_code():
            found: Reloaded = module.reload(folder)
            return found

    return Format(name, library, module.check, write, reload, getattr(module, "relocate", _stays))


def _stays(folder: Path, to: Path) -> bool:
    return False


FORMATS = {
    "transformers": _format("transformers", "transformers", transformers_format),
    "open_clip": _format("open_clip", "open_clip", open_clip_format),
    "safetensors": _format("safetensors", "siglightning", safetensors_format),
    "onnx": _format("onnx", "onnxruntime", onnx_format),
}


def refusal(network: TwoTower, name: str) -> str | None:
    """Why a format cannot hold a network, and which can; ``None`` where it can.

    Raises:
        ValueError: a package is missing.
    """
    try:
        FORMATS[name].check(network)
    except UnheldError as error:
        others = [other for other in FORMATS if other != name and _holds(network, other)]
        return f"{name} cannot hold this network: {error}. Formats that can: {', '.join(others)}."
    return None


def _holds(network: TwoTower, name: str) -> bool:
    try:
        FORMATS[name].check(network)
    except ValueError:  # a missing package included
        return False
    return True
