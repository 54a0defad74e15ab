"""What open_clip has to know of a timm model: its name, its arguments and its pooling."""

import json
from pathlib import Path
from typing import Any

import torch

from siglightning.models.export.unheld import UnheldError, kind
from siglightning.models.timm_towers import TimmImageTower


def written_model(name: str | None) -> tuple[str | None, dict[str, Any]]:
    """A timm model in open_clip's configuration; of one that lies in a folder, its registered name and arguments."""
    place = Path((name or "").removeprefix("local-dir:")) / "config.json"
    if not name or not name.startswith("local-dir:") or not place.is_file():
        return name, {}
    found = json.loads(place.read_text())
    return found["architecture"], dict(found.get("model_args") or {})


def arguments_of(tower: TimmImageTower) -> tuple[str, dict[str, Any]]:
    """The registered name, and what it has to be built with; nothing where the name alone builds the tower.

    Raises:
        UnheldError: arguments that JSON does not have.
    """
    import timm

    trunk: Any = tower.trunk
    name, given = str(trunk.default_cfg["architecture"]), dict(tower.config.kwargs) if tower.config else {}
    given = {key: value for key, value in given.items() if key not in ("num_classes", "img_size")}
    if set(trunk.default_cfg["input_size"][1:]) != {tower.image_size}:
        with torch.device("meta"):
            try:
                timm.create_model(name, img_size=tower.image_size, **given)
                given["img_size"] = tower.image_size
            except TypeError:  # convolutional models take any size
                pass
    try:
        json.dumps(given)
    except TypeError as error:
        raise UnheldError(f"its timm model has arguments that no file holds ({error})") from None
    return name, given


def pooling(trunk: Any) -> str:
    """How a timm model pools, as open_clip's ``timm_pool`` has it.

    Raises:
        UnheldError: it does not say.
    """
    pool = getattr(trunk, "global_pool", None) or getattr(getattr(trunk, "head", None), "global_pool", None)
    name = pool if isinstance(pool, str) else getattr(pool, "pool_type", None)
    if not name:
        raise UnheldError(f"its timm model {kind(trunk)} does not say how it pools; with `embed_dim` it need not")
    return str(name)
