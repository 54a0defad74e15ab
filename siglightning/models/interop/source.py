"""Which library a checkpoint is of, and its reader."""

from pathlib import Path
from typing import get_args

from siglightning.models.foreign import refusing
from siglightning.models.interop.checkpoint import Checkpoint, Kind
from siglightning.models.interop.files import archived_names, read_tensors
from siglightning.models.interop.from_run import from_run, is_run
from siglightning.models.interop.from_safetensors import from_safetensors, is_exported
from siglightning.models.towers import unknown_name

_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".npz", ".ckpt")
_SCHEMES: dict[str, Kind] = {"hf": "transformers", "open_clip": "open_clip"}
_CONFIGURATIONS = (".yaml", ".yml", ".json")
_OPEN_CLIP_CONFIG = "open_clip_config.json"


def open_checkpoint(
    source: str | Path, kind: Kind | None = None, architecture: str | None = None, config: str | Path | None = None
) -> Checkpoint:
    """Read a two-tower checkpoint of any of the libraries.

    Args:
        source: a folder of transformers, of open_clip or of ``siglightning export``, a run directory, a file (``.npz``
            of big_vision, ``.ckpt`` of a run, weights of open_clip), ``hf:NAME`` on the Hugging Face hub, or
            ``open_clip:NAME``, with certain weights ``open_clip:NAME@WEIGHTS``. A name without scheme is looked up in
            open_clip's list, else on the hub.
        kind: whose it is, where that cannot be told, as of a folder that two libraries can read; ``None`` finds out.
        architecture: open_clip's name of the model, for a file of weights alone.
        config: ``config.yaml`` of the run, for a checkpoint of ours that lies elsewhere.

    Raises:
        ValueError: there is nothing there; it is damaged; it could only be read by running code from it; it is not a
            model of two towers. Nothing is executed.
    """
    if kind is not None and kind not in get_args(Kind):
        raise unknown_name("kind of checkpoint", kind, get_args(Kind))
    with refusing(source):
        return _open(str(source), kind, architecture, config)


def _open(text: str, kind: Kind | None, architecture: str | None, config: str | Path | None) -> Checkpoint:
    scheme, _, rest = text.partition(":")
    named = _SCHEMES.get(scheme) if rest else None
    if named is not None and kind in (None, named):
        return _by_name(named, rest)
    path = Path(text).expanduser()
    if path.exists():
        return _from_path(path, kind or _kind_of(path), architecture, None if config is None else Path(config))
    if text.startswith((".", "/", "~")) or path.suffix in _SUFFIXES:
        raise ValueError(f"There is no checkpoint {text!r}: no such file or folder.")
    return _by_name(kind or _kind_of_name(text), text)


def require_source(source: str, what: str) -> None:
    """Refuse what was typed by hand and is not there, before anything is looked for elsewhere or built.

    A name without scheme is refused, too: a mistyped folder would be asked for on a hub.

    Args:
        source: as :func:`open_checkpoint` takes it.
        what: asks for it, for the message.

    Raises:
        ValueError: there is nothing of that name, or no intact checkpoint in the run.
    """
    scheme, _, rest = source.partition(":")
    path = Path(source).expanduser()
    if scheme in _SCHEMES and rest:
        return
    if not path.exists():
        raise ValueError(
            f"{what} expects a checkpoint file or a directory, got {source!r}, which does not exist. A model of "
            "another library by name is written hf:NAME or open_clip:NAME."
        )
    if is_run(path):
        from siglightning.runtime.checkpoint import find_checkpoint  # loads Lightning

        find_checkpoint(path)


def _by_name(kind: Kind, name: str) -> Checkpoint:
    if kind == "open_clip":
        from siglightning.models.interop.from_open_clip import from_open_clip

        return from_open_clip(name)
    if kind == "transformers":
        from siglightning.models.interop.from_transformers import from_transformers

        return from_transformers(name)
    raise ValueError(f"A checkpoint of kind {kind!r} is a file or folder; there is no {name!r}.")


def _kind_of_name(name: str) -> Kind:
    from siglightning.models.interop.from_open_clip import is_model_name

    return "open_clip" if is_model_name(name) else "transformers"


def _kind_of(path: Path) -> Kind:
    from siglightning.models.interop.from_big_vision import is_big_vision

    if is_run(path):
        return "run"
    if path.suffix in _CONFIGURATIONS:
        raise ValueError(
            f"{path} is a configuration and has no weights. Give the folder that it lies in, {path.parent}, or a "
            "checkpoint with --config FILE beside it."
        )
    if path.is_file():
        return "big_vision" if is_big_vision(archived_names(path)) else "open_clip"
    if is_exported(path):
        return "safetensors"
    if (path / "vision_model.onnx").is_file():
        raise ValueError(
            f"{path} holds graphs of ONNX, in which weights have no names of ours. Give the run or folder that it was "
            "exported from."
        )
    if (path / "config.json").is_file():
        return "transformers"
    if (path / _OPEN_CLIP_CONFIG).is_file():
        return "open_clip"
    raise ValueError(
        f"{path} is no checkpoint: expected config.json (transformers) or {_OPEN_CLIP_CONFIG} (open_clip), an export "
        "of ours, or the folder checkpoints of a run in it."
    )


def _from_path(path: Path, kind: Kind, architecture: str | None, config: Path | None) -> Checkpoint:
    match kind:
        case "run":
            return from_run(path, config)
        case "safetensors":
            return from_safetensors(path)
        case "big_vision":
            from siglightning.models.interop.from_big_vision import from_big_vision

            return from_big_vision(path)
        case "transformers":
            from siglightning.models.interop.from_transformers import from_transformers

            return from_transformers(str(path if path.is_dir() else path.parent))
        case "open_clip":
            return _from_open_clip_path(path, architecture)


def _from_open_clip_path(path: Path, architecture: str | None) -> Checkpoint:
    from siglightning.models.interop.from_open_clip import from_open_clip_file, from_open_clip_folder

    if path.is_dir():
        return from_open_clip_folder(path)
    if architecture is not None:
        return from_open_clip_file(path, architecture)
    names = read_tensors(path)  # refuses what is damaged or needs code, before anything is asked of the user
    if any(name.startswith("vision_model.") for name in names):
        raise ValueError(f"{path} has weights of transformers; give the folder that has config.json beside them.")
    if any(name.startswith("visual.") for name in names):
        raise ValueError(
            f"{path} has weights of open_clip and does not say of which model: give `architecture`, open_clip's name "
            f"of it, or a folder with {_OPEN_CLIP_CONFIG}."
        )
    raise ValueError(
        f"{path} is of no library that is known: expected names such as vision_model. (transformers), visual. "
        f"(open_clip) or img/ (big_vision), got {', '.join(sorted(names)[:3])}."
    )
