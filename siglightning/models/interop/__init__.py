"""Checkpoints, of ours and of other libraries: what comes in."""

from siglightning.models.interop.checkpoint import Checkpoint
from siglightning.models.interop.loading import build, load_into, load_two_tower
from siglightning.models.interop.source import open_checkpoint, require_source

__all__ = ["Checkpoint", "build", "load_into", "load_two_tower", "open_checkpoint", "require_source"]
