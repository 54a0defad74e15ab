"""Files of weights from anywhere, read without running anything that they hold.

What a file is, its content tells and not its name: safetensors, an archive of numpy arrays (``.npz``), or what
``torch.save`` wrote. The last is a pickle, and a pickle can name any function to be called; only tensors and plain
containers are accepted.
"""

import re
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_ARRAYS, _SAFETENSORS, _TORCH = "numpy archive", "safetensors file", "file of torch.save"
_WRAPPERS = ("state_dict", "model", "model_state_dict")  # under which training loops keep the weights


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Names and tensors of a file of weights, on the CPU.

    The dictionary that a training loop wrote around them (``state_dict``) and the ``module.`` of its wrapper are taken
    off.

    Raises:
        ValueError: there is no such file; it is empty, damaged, cut short or of a format that is not known; it could
            only be read by running code from it; or it holds more than named tensors. The message says which.
    """
    if not path.is_file():
        raise ValueError(f"Expected a file of weights, got {str(path)!r}, which does not exist.")
    kind = _format(path)
    try:
        content = {_ARRAYS: _read_arrays, _SAFETENSORS: _read_safetensors, _TORCH: _read_torch}[kind](path)
    except OSError:
        raise
    except Exception as error:  # each format has its own kinds of error, which nobody outside should have to know
        raise ValueError(f"{path} is no readable {kind}: {_reason(error)}") from error
    return _named_tensors(content, path)


def archived_names(path: Path) -> list[str]:
    """Names in a numpy archive without reading its arrays, ``[]`` for any other file."""
    if not zipfile.is_zipfile(path):
        return []
    return [name.removesuffix(".npy") for name in _index(path) if name.endswith(".npy")]


def _format(path: Path) -> str:
    with path.open("rb") as file:
        start = file.read(9)
    if not start:
        raise ValueError(f"{path} is empty.")
    if start[8:9] == b"{":  # eight bytes of length, then JSON
        return _SAFETENSORS
    if not start.startswith(b"PK"):
        if path.suffix == ".safetensors":
            raise ValueError(f"{path} is damaged: it does not begin like a safetensors file.")
        return _TORCH  # before torch 1.6: a bare pickle
    if not zipfile.is_zipfile(path):
        raise ValueError(f"{path} is damaged or cut short: the index at the end of the archive is missing.")
    names = _index(path)
    if any("/code/" in name for name in names):
        raise ValueError(
            f"{path} is a TorchScript archive, which holds code. Give a state dictionary instead, or the name of the "
            "model, such as open_clip:ViT-B-32@openai."
        )
    return _ARRAYS if any(name.endswith(".npy") for name in names) else _TORCH


def _index(path: Path) -> list[str]:
    """Names of the files in an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except Exception as error:  # BadZipFile, struct.error, NotImplementedError: whatever the bytes there say
        raise ValueError(f"{path} is damaged: the index at the end of the archive cannot be read ({error}).") from error


def _read_arrays(path: Path) -> dict[str, Tensor]:
    with np.load(path, allow_pickle=False) as archive:
        return {name: _tensor(archive[name]) for name in archive.files}


def _tensor(array: Any) -> Tensor:
    if array.dtype == np.dtype("V2"):  # bfloat16, which numpy stores without a name
        return torch.from_numpy(array.view(np.int16)).view(torch.bfloat16)
    return torch.from_numpy(np.ascontiguousarray(array))


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return dict(load_file(path))


def _read_torch(path: Path) -> Any:
    with warnings.catch_warnings(), path.open("rb") as file:  # opened here: of a path, torch looks at the name, too
        warnings.simplefilter("ignore")
        return torch.load(file, map_location="cpu", weights_only=True)


def _reason(error: Exception) -> str:
    forbidden = re.search(r"GLOBAL\s+(?:`?)([\w.]+)", str(error))
    if forbidden:
        return (
            f"to restore it, {forbidden.group(1)} would have to be called, and code from a checkpoint is never run. "
            "Save its weights alone, as safetensors or with torch.save(model.state_dict())."
        )
    if "allow_pickle" in str(error):
        return "it holds pickled objects, and code from a checkpoint is never run. Save its arrays as plain numbers."
    if "weights_only" in str(error):  # torch goes on to advise to switch the protection off
        return "it is damaged, or holds more than tensors, and code from a checkpoint is never run."
    return f"damaged or cut short ({str(error).strip().partition(chr(10))[0][:200] or type(error).__name__})."


def _named_tensors(content: Any, path: Path) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(content, Mapping) and isinstance(content.get(wrapper), Mapping):
            content = content[wrapper]
    if not isinstance(content, Mapping) or not content:
        raise ValueError(f"{path} holds a {type(content).__name__}, expected named weights.")
    others = [name for name, value in content.items() if not isinstance(value, Tensor)]
    if others:
        raise ValueError(
            f"{path} holds {len(others)} entries that are no tensors, first {others[0]!r}; expected weights only."
        )
    is_wrapped = all(name.startswith("module.") for name in content)
    return {name.removeprefix("module.") if is_wrapped else name: value for name, value in content.items()}
