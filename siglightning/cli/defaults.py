"""What every run gets without asking: callbacks, and the writer of checkpoint files."""

from collections.abc import Sequence
from typing import Any

from lightning.fabric.plugins.io.checkpoint_io import CheckpointIO
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ProgressBar

from siglightning.callbacks import (
    CalibrationWriter,
    ClassAccuracy,
    ClassPictures,
    CollapseAlarm,
    EpochTable,
    FigureWriter,
    HardestNegatives,
    LabelCards,
    LogitHistograms,
    MemoryMonitor,
    ModelRecord,
    PredictionTables,
    PredictionWriter,
    ReliabilityFigures,
    RetrievalReport,
    RunProgressBar,
    SampleWriter,
    SpikeMonitor,
    SummaryTable,
    ThroughputMonitor,
)
from siglightning.runtime.checkpoint import AtomicCheckpointIO


def default_callbacks(configured: Sequence[Callback], *, progress_bar: bool) -> list[Callback]:
    """The callbacks of every run, without those that the configuration holds itself.

    The figures come before the table, which lists them.

    Args:
        configured: the callbacks of the configuration.
        progress_bar: whether progress is to be shown.
    """
    watch: list[type[Callback]] = [ThroughputMonitor, MemoryMonitor, ClassPictures, ModelRecord, EpochTable]
    stability: list[type[Callback]] = [SpikeMonitor, CollapseAlarm]
    figures: list[type[Callback]] = [
        FigureWriter,
        SampleWriter,
        RetrievalReport,
        ClassAccuracy,
        ReliabilityFigures,
        LabelCards,
        HardestNegatives,
        LogitHistograms,
        PredictionTables,
    ]
    kinds: list[type[Callback]] = [*watch, *stability, *figures, CalibrationWriter, SummaryTable, PredictionWriter]
    missing = [kind() for kind in kinds if not any(isinstance(callback, kind) for callback in configured)]
    if progress_bar and not any(isinstance(callback, ProgressBar) for callback in configured):
        missing.append(RunProgressBar())
    return missing


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
