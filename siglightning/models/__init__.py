"""Two-tower models: towers by name, tokenizers, projections, t' and b."""

from siglightning.models.image_encoder import ImageEncoder
from siglightning.models.interop import load_two_tower
from siglightning.models.saliency import SaliencyMasking, with_saliency
from siglightning.models.tokenizers import Tokenizer
from siglightning.models.towers import (
    ImageTower,
    TextTower,
    TowerConfig,
    build_image_tower,
    build_text_tower,
    has_trainable_batchnorm,
)
from siglightning.models.two_tower import TwoTower

__all__ = [
    "ImageEncoder",
    "ImageTower",
    "SaliencyMasking",
    "TextTower",
    "Tokenizer",
    "TowerConfig",
    "TwoTower",
    "build_image_tower",
    "build_text_tower",
    "has_trainable_batchnorm",
    "load_two_tower",
    "with_saliency",
]
