"""What identifies the features that a frozen tower gives: its weights, and how its input is prepared.

Features that were stored are worth nothing without knowing whose they are. Keys are made of contents, never of names
or paths, so that a moved folder keeps its key and other weights under the same name do not.
"""

import hashlib
import json
from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from siglightning.batch import Resizing
from siglightning.models.tokenizers import Tokenizer
from siglightning.models.towers import ImageTower, TextTower

PROBES = (  # captions on which tokenizers differ: case, punctuation, accents, scripts, emoji, length
    "A photo of TWO dogs, running!",
    "it's 12:30 – naïve café_menu #1 (50%)",
    "Ein großer Hund; 大きな犬 큰 개 большая собака كلب كبير कुत्ता",
    "🐕‍🦺 " + "word " * 400,
)


def image_key(tower: ImageTower) -> str:
    """Identity of an image tower's features, 16 hexadecimal digits: weights, and how pictures are prepared.

    Tokens that a tower leaves out in evaluation, the mode in which features are stored, belong to it as well.
    """
    preparation: list[Any] = [tower.image_size, list(tower.mean), list(tower.std)]
    if tower.resizing != Resizing():
        preparation.append(asdict(tower.resizing))
    if tower.saliency is not None and tower.saliency.applies(training=False):
        preparation.append(asdict(tower.saliency))
    return _digest(tower, preparation)


def text_key(tower: TextTower, tokenizer: Tokenizer) -> str:
    """Identity of a text tower's features, 16 hexadecimal digits: weights, and what the tokenizer makes of captions."""
    return _digest(tower, [tokenizer.context_length, tokenizer(PROBES).tolist()])


def _digest(tower: nn.Module, preparation: list[Any]) -> str:
    whole = hashlib.blake2b(json.dumps(preparation).encode(), digest_size=8)
    whole.update(type(tower).__name__.encode())
    for name, value in tower.state_dict().items():
        whole.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        whole.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return whole.hexdigest()
