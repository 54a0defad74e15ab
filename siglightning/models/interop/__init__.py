"""Checkpoints of other libraries: what comes in."""

from siglightning.models.interop.checkpoint import Checkpoint
from siglightning.models.interop.loading import load_into, load_two_tower
from siglightning.models.interop.source import open_checkpoint

__all__ = ["Checkpoint", "load_into", "load_two_tower", "open_checkpoint"]
