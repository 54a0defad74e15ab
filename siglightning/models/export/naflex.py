"""Squares as ``Siglip2Model`` (NaFlex) reads them: flat patches, and how many of them stand on each side.

Its image processor keeps a picture's proportions and takes as many patches as are allowed. Our networks read squares;
of a square it takes exactly our patches, so pictures have to be squares before they reach it.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from siglightning.models.export.pictures import preprocessor_config
from siglightning.models.export.reloaded import Outputs
from siglightning.models.export.unheld import UnheldError
from siglightning.models.hf_towers import HfNaflexTower
from siglightning.models.two_tower import TwoTower


def is_naflex(network: TwoTower) -> bool:
    """Whether a network's pictures are read in patches of any number."""
    return isinstance(network.image_tower, HfNaflexTower)


def patches_config(network: TwoTower) -> dict[str, Any]:
    """Content of ``preprocessor_config.json``: as many patches as our square has.

    Raises:
        UnheldError: the middle is cut out of pictures, for which that processor has no option.
    """
    if network.resizing.crop is not None:
        raise UnheldError("the middle is cut out of its pictures, which Siglip2ImageProcessor does not do")
    patch = int(network.image_tower.trunk.config.patch_size)  # type: ignore[union-attr, arg-type]  # untyped
    config = preprocessor_config(network)
    del config["size"]
    return config | {
        "image_processor_type": "Siglip2ImageProcessor",
        "patch_size": patch,
        "max_num_patches": (network.image_size // patch) ** 2,
    }


def tokenizer_class(folder: Path) -> Any:
    """The class that a folder names, which ``AutoTokenizer`` overrules: it takes any vocabulary for that of Gemma."""
    import transformers

    return getattr(transformers, json.loads((folder / "tokenizer_config.json").read_text())["tokenizer_class"])


def squares_of_patches(pictures: Sequence[Image.Image], processor: Any) -> Tensor:
    """Pictures squashed by Pillow, cut up by transformers' processor and put together again, ``[N, 3, S, S]``."""
    grid, patch = math.isqrt(processor.max_num_patches), processor.patch_size
    way = Image.Resampling(processor.resample)
    squares = [picture.resize((grid * patch, grid * patch), way) for picture in pictures]
    patches: Tensor = processor(images=squares, return_tensors="pt")["pixel_values"]
    return patches.reshape(-1, grid, grid, patch, patch, 3).permute(0, 5, 1, 3, 2, 4).flatten(4).flatten(2, 3)


def outputs_of_squares(model: Any, values: Tensor, ids: Tensor) -> Outputs:
    """What a ``Siglip2Model`` says of pictures ``[N, 3, S, S]`` and captions, int64 ``[M, L]``."""
    patch = model.config.vision_config.patch_size
    grid = values.shape[-1] // patch
    patches = (
        values.reshape(-1, 3, grid, patch, grid, patch).permute(0, 2, 4, 3, 5, 1).reshape(-1, grid**2, 3 * patch**2)
    )
    out = model(
        pixel_values=patches,
        pixel_attention_mask=torch.ones(patches.shape[:2], dtype=torch.long),
        spatial_shapes=torch.full((len(patches), 2), grid),
        input_ids=ids,
    )
    return Outputs(out.image_embeds, out.text_embeds, out.logits_per_image)
