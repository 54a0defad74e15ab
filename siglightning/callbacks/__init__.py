"""What accompanies a run: monitors, progress, figures, and the table at the end."""

from siglightning.callbacks.calibration import CalibrationWriter
from siglightning.callbacks.class_accuracy import ClassAccuracy
from siglightning.callbacks.class_pictures import ClassPictures
from siglightning.callbacks.collapse import CollapseAlarm
from siglightning.callbacks.epoch_table import EpochTable
from siglightning.callbacks.figures import FigureWriter
from siglightning.callbacks.hardest import HardestNegatives
from siglightning.callbacks.label_cards import LabelCards
from siglightning.callbacks.logit_histograms import LogitHistograms
from siglightning.callbacks.memory import MemoryMonitor
from siglightning.callbacks.model_record import ModelRecord
from siglightning.callbacks.prediction_tables import PredictionTables
from siglightning.callbacks.predictions import PredictionWriter
from siglightning.callbacks.probes import ProbeEvaluation
from siglightning.callbacks.progress import RunProgressBar
from siglightning.callbacks.reliability import ReliabilityFigures
from siglightning.callbacks.retrieval_page import RetrievalReport
from siglightning.callbacks.samples import SampleWriter
from siglightning.callbacks.spikes import SpikeMonitor
from siglightning.callbacks.summary import SummaryTable
from siglightning.callbacks.throughput import ThroughputMonitor

__all__ = [
    "CalibrationWriter",
    "ClassAccuracy",
    "ClassPictures",
    "CollapseAlarm",
    "EpochTable",
    "FigureWriter",
    "HardestNegatives",
    "LabelCards",
    "LogitHistograms",
    "MemoryMonitor",
    "ModelRecord",
    "PredictionTables",
    "PredictionWriter",
    "ProbeEvaluation",
    "ReliabilityFigures",
    "RetrievalReport",
    "RunProgressBar",
    "SampleWriter",
    "SpikeMonitor",
    "SummaryTable",
    "ThroughputMonitor",
]
