"""What every run gets without asking: callbacks, and the writer of checkpoint files."""

from collections.abc import Sequence
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import Callback

import siglightning.callbacks as callbacks
from siglightning.runtime.checkpoint import AtomicCheckpointIO

DEFAULT_CALLBACKS = ("ThroughputMonitor", "MemoryMonitor", "RunProgressBar", "FigureWriter", "SummaryTable")


def default_callbacks(configured: Sequence[Callback]) -> list[Callback]:
    """The callbacks of every run, without those that the configuration holds itself.

    Args:
        configured: the callbacks of the configuration.
    """
    kinds = [getattr(callbacks, name) for name in DEFAULT_CALLBACKS if hasattr(callbacks, name)]
    return [kind() for kind in kinds if not any(isinstance(callback, kind) for callback in configured)]


def with_atomic_checkpoints(plugins: Any, strategy: Any) -> list[Any]:
    """The Trainer's plugins with our writer of checkpoint files, unless there is another one.

    Args:
        plugins: the Trainer's ``plugins`` argument: a plugin, a list or ``None``.
        strategy: its ``strategy`` argument: a name, or a strategy that may bring its own writer.
    """
    present = list(plugins) if isinstance(plugins, list | tuple) else [] if plugins is None else [plugins]
    brings_its_own = isinstance(getattr(strategy, "_checkpoint_io", None), CheckpointIO)
    if brings_its_own or any(isinstance(plugin, CheckpointIO) for plugin in present):
        return present
    return [*present, AtomicCheckpointIO()]
