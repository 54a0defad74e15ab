"""What the command line refuses by itself before anything is built."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from siglightning.cli.hints import nearest
from siglightning.models.interop import require_source


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
