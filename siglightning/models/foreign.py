"""What strangers made: nothing that it brings is run, and whatever it breaks is told as a refusal.

transformers imports the modules that a folder or repository names (``auto_map``) where it was told to, and asks on the
terminal where it was told nothing; open_clip tells it nothing. Here the answer is no, whoever calls transformers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import RLock
from typing import Any

_LOCK = RLock()  # transformers' modules are changed for a while, and must not be left so
_NEVER = "it could only be read by running modules of its own, and code from a checkpoint is never run"
_LONGEST = 400  # characters of another library's message


@contextmanager
def no_foreign_code() -> Iterator[None]:
    """Let transformers neither import modules of a checkpoint nor ask whether it may.

    Raises:
        ValueError: something within would have had to.
    """
    from transformers import dynamic_module_utils as modules

    def refuse(*_: Any, **__: Any) -> Any:
        raise ValueError(_NEVER)

    # Zero seconds to answer in: it does not ask. The other is where every module of a checkpoint becomes a class.
    changed = {"TIME_OUT_REMOTE_CODE": 0, "get_class_in_module": refuse}
    try:
        with _LOCK, _changed(modules, changed):
            yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise ValueError(_NEVER) from error  # transformers goes on to advise to trust it


@contextmanager
def _changed(module: Any, values: dict[str, Any]) -> Iterator[None]:
    kept = {name: getattr(module, name) for name in values}
    vars(module).update(values)
    try:
        yield
    finally:
        vars(module).update(kept)


@contextmanager
def refusing(source: str | Path) -> Iterator[None]:
    """Turn whatever a file from elsewhere makes a library raise into one refusal that names the file.

    Nobody can list what a damaged configuration may raise in four libraries. So everything that goes wrong while such a
    file is read is its fault.

    Args:
        source: the file, folder or name that is being read.

    Raises:
        ValueError: anything was raised within.
    """
    try:
        yield
    except Exception as error:
        if isinstance(error, ValueError) and str(source).rpartition(":")[2] in str(error):
            raise
        told = first_words(error)
        if isinstance(error, ValueError):
            raise ValueError(f"{source}: {told}") from error
        raise ValueError(
            f"{source} is damaged, or not what its files say that it is ({type(error).__name__}: {told})."
        ) from error


def first_words(error: BaseException) -> str:
    """The beginning of an error's message, in one line."""
    return " ".join(str(error).split())[:_LONGEST]
