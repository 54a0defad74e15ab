"""How pictures are prepared, as transformers and open_clip write it down, and the same by Pillow and NumPy."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from siglightning.models.export.unheld import UnheldError
from siglightning.models.two_tower import TwoTower

_RESAMPLE = {"bilinear": 2, "bicubic": 3}  # Pillow's numbers, which preprocessor files hold


def preprocessor_config(network: TwoTower) -> dict[str, Any]:
    """Content of ``preprocessor_config.json``; pictures are squashed, or the middle is cut out of them as CLIP does."""
    tower, resizing, side = network.image_tower, network.resizing, network.image_size
    square = {"height": side, "width": side}
    sizes: dict[str, Any] = {"image_processor_type": "SiglipImageProcessor", "size": square}
    if resizing.crop is not None:
        shorter = max(side, round(side / resizing.crop))
        sizes = {
            "image_processor_type": "CLIPImageProcessor",
            "size": {"shortest_edge": shorter},
            "do_center_crop": True,
            "crop_size": square,
        }
    return sizes | {
        "do_convert_rgb": True,
        "do_resize": True,
        "resample": _RESAMPLE[resizing.interpolation],
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(tower.mean),
        "image_std": list(tower.std),
    }


def squares(pictures: Sequence[Tensor], config: Mapping[str, Any]) -> NDArray[np.uint8]:
    """Pictures as squares, by Pillow, as anyone would write it down from the file.

    Args:
        pictures: uint8 ``[3, H, W]``.
        config: see :func:`preprocessor_config`.

    Returns:
        uint8 ``[N, S, S, 3]``.
    """
    images = [Image.fromarray(picture.permute(1, 2, 0).numpy()) for picture in pictures]
    return np.stack([np.asarray(_square(image, config)) for image in images])


def _square(image: Image.Image, config: Mapping[str, Any]) -> Image.Image:
    size, way = config["size"], Image.Resampling(config["resample"])
    if "shortest_edge" not in size:
        return image.resize((size["width"], size["height"]), way)
    factor = size["shortest_edge"] / min(image.size)
    # The longer side is cut off to a whole number, as transformers does; the tolerance is for a ratio of whole numbers.
    wide, high = (int(side * factor + 1e-6) for side in image.size)
    kept = config["crop_size"]["width"]
    left, top = (wide - kept) // 2, (high - kept) // 2
    return image.resize((wide, high), way).crop((left, top, left + kept, top + kept))


def preprocess_config(network: TwoTower) -> dict[str, Any]:
    """Content of ``preprocess_cfg`` in ``open_clip_config.json``.

    Raises:
        UnheldError: the middle is cut out of a picture larger than the square, which open_clip does not do.
    """
    crop, tower = network.resizing.crop, network.image_tower
    if crop not in (None, 1.0):
        raise UnheldError(
            f"its pictures lose a margin (crop {crop}), and open_clip squashes them or cuts the middle out"
        )
    mode = "squash" if crop is None else "shortest"
    return {"mean": tower.mean, "std": tower.std, "interpolation": network.resizing.interpolation, "resize_mode": mode}
