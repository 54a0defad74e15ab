"""Measurements of trained models: pure functions of tensors, no Lightning."""

from siglightning.evaluation.activations import activations, compare_activations
from siglightning.evaluation.bootstrap import (
    MetricValue,
    bootstrap_interval,
    counts_interval,
    mean_with_interval,
    statistics_with_interval,
)
from siglightning.evaluation.calibration import Calibration, CalibrationFit, fit_calibration
from siglightning.evaluation.classification import Predictions, classification_metrics
from siglightning.evaluation.collapse import collapse_metrics, effective_rank, mean_cosine
from siglightning.evaluation.hardest import HardNegative, hardest_negatives
from siglightning.evaluation.label_scores import LabelScores
from siglightning.evaluation.logit_histogram import LogitHistogram, logit_histogram
from siglightning.evaluation.multilabel import multilabel_metrics
from siglightning.evaluation.pair_calibration import PairCalibration, pair_calibration
from siglightning.evaluation.pairs import PairLogits, pair_logits
from siglightning.evaluation.per_class import ClassResult, per_class_results
from siglightning.evaluation.prompts import DEFAULT_TEMPLATES, TEMPLATES, Templates, fill_templates, templates_of
from siglightning.evaluation.reliability import ReliabilityBins, calibration_error, reliability_bins
from siglightning.evaluation.report import Evaluation, Example, ExampleImages, evaluate_retrieval
from siglightning.evaluation.retrieval import (
    chance_mean_rank,
    chance_recall_at_k,
    mean_rank,
    median_rank,
    ranks_both_ways,
    recall_at_k,
    retrieval_metrics,
    retrieval_ranks,
)
from siglightning.evaluation.spikes import SpikeCounter
from siglightning.evaluation.targets import multi_hot, require_disjoint, require_other_pictures
from siglightning.evaluation.thresholds import Decision, ThresholdRule
from siglightning.evaluation.zeroshot import (
    class_embeddings,
    first_of_name,
    metrics_of_predictions,
    metrics_of_ranks,
    zeroshot_metrics,
    zeroshot_ranks,
)

__all__ = [
    "DEFAULT_TEMPLATES",
    "TEMPLATES",
    "Calibration",
    "CalibrationFit",
    "ClassResult",
    "Decision",
    "Evaluation",
    "Example",
    "ExampleImages",
    "HardNegative",
    "LabelScores",
    "LogitHistogram",
    "MetricValue",
    "PairCalibration",
    "PairLogits",
    "Predictions",
    "ReliabilityBins",
    "SpikeCounter",
    "Templates",
    "ThresholdRule",
    "activations",
    "bootstrap_interval",
    "calibration_error",
    "chance_mean_rank",
    "chance_recall_at_k",
    "class_embeddings",
    "classification_metrics",
    "collapse_metrics",
    "compare_activations",
    "counts_interval",
    "effective_rank",
    "evaluate_retrieval",
    "fill_templates",
    "first_of_name",
    "fit_calibration",
    "hardest_negatives",
    "logit_histogram",
    "mean_cosine",
    "mean_rank",
    "mean_with_interval",
    "median_rank",
    "metrics_of_predictions",
    "metrics_of_ranks",
    "multi_hot",
    "multilabel_metrics",
    "pair_calibration",
    "pair_logits",
    "per_class_results",
    "ranks_both_ways",
    "recall_at_k",
    "reliability_bins",
    "require_disjoint",
    "require_other_pictures",
    "retrieval_metrics",
    "retrieval_ranks",
    "statistics_with_interval",
    "templates_of",
    "zeroshot_metrics",
    "zeroshot_ranks",
]
