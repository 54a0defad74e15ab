"""Several labels for a picture, from a fine-tuned classifier or from prompts, with calibrated probabilities."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from siglightning.batch import Batch, InputSpec
from siglightning.evaluation import (
    DEFAULT_TEMPLATES,
    Calibration,
    CalibrationFit,
    Decision,
    Evaluation,
    LabelScores,
    Predictions,
    ReliabilityBins,
    ThresholdRule,
    activations,
    class_embeddings,
    compare_activations,
    fit_calibration,
    multi_hot,
    reliability_bins,
    require_other_pictures,
)
from siglightning.evaluation.calibration_file import SavedCalibration
from siglightning.evaluation.collected import CollectedSet, ids_of
from siglightning.models import ImageEncoder, TwoTower
from siglightning.optim import Schedule
from siglightning.runtime.differences import require_same_state
from siglightning.runtime.processes import notice
from siglightning.tasks.base import adamw
from siglightning.tasks.classifier import ClassifierTask

_REMEDY = (
    "Give the data a test set of its own, or a fixed temperature (`model.init_args.temperature: 4.0`) and thresholds "
    "of the kind fixed or top_k."
)

_NO_TRAINING = "MultiLabelTask trains nothing. Fit a FineTuneTask, and evaluate its checkpoint with this one."


class MultiLabelTask(ClassifierTask):
    """Validates, tests and predicts several labels for each picture: ``sigmoid(z / T + bias)`` against thresholds.

    Logits come from the classifier of a :class:`~siglightning.tasks.FineTuneTask`, whose checkpoint it reads, or from
    the cosines of pictures and prompts, ``exp(t') x.y + b``; the rest is the same. Nothing is trained.

    What is fitted, T, biases and thresholds of best F1, is fitted on the validation set, and the test sets report. A
    test leaves :attr:`evaluations` of the softmax, the plain sigmoid and the calibrated one for each test set, and
    ``calibration.json`` in its directory, which ``calibration_file`` takes up for pictures without labels.

    Args:
        network: the image tower, or two towers for prompts.
        prompts: names of the labels to ask for; ``classes`` are those of the data; ``null`` uses the classifier.
        templates: sentences with ``{}`` in the place of a name; ``null`` are those of the data, or general ones.
        temperature: T, or ``fit``. A report's 4, chosen by eye (``recipe/satellite_multilabel``), is no default: on
            collages with known labels every measure of probabilities was worse with it than with 1
            (benchmarks/results/single_labels.md).
        per_class_bias: fit a bias for each class, too.
        thresholds: which labels pass.
        calibration_file: a ``calibration.json`` instead of temperature and thresholds.
        num_classes: checked against the data or the checkpoint.
        seed: of the division of the validation set with which a fit is checked.

    Raises:
        ValueError: T that is not above 0, biases without a fit, or prompts without a text tower.
    """

    def __init__(
        self,
        network: ImageEncoder,
        prompts: list[str] | Literal["classes"] | None = None,
        templates: list[str] | None = None,
        temperature: float | Literal["fit"] = 1.0,
        per_class_bias: bool = False,
        thresholds: ThresholdRule = ThresholdRule(),  # noqa: B008  # frozen: nobody can change the default
        calibration_file: str | None = None,
        num_classes: int | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__(adamw, Schedule(), (), 1.0, seed)
        if prompts is not None and not isinstance(network, TwoTower):
            raise ValueError(
                f"Prompts need a text tower, got {type(network).__name__}. Use siglightning.models.TwoTower as the "
                "network, or leave `prompts` out and give the checkpoint of a fine-tuned classifier."
            )
        if per_class_bias and temperature != "fit":
            raise ValueError("Biases are fitted together with T: set `temperature: fit`, or `per_class_bias: false`.")
        self.begin_classifier(network, num_classes)
        self.prompts, self.templates, self.rule = prompts, templates, thresholds
        self.fits_calibration, self.per_class_bias = temperature == "fit", per_class_bias
        self.calibration = Calibration() if temperature == "fit" else Calibration(float(temperature))
        self.saved = None if calibration_file is None else SavedCalibration.read(Path(calibration_file))
        self.input_spec = InputSpec(network.image_size, None, network.feature_keys, network.resizing)
        self.decision: Decision | None = None
        self.fit_result: CalibrationFit | None = None
        self.reliability: dict[str, dict[str, ReliabilityBins]] = {}
        self._held_out: Predictions | None = None
        self._class_embeds: Tensor | None = None

    @property
    def needs_held_out(self) -> bool:
        """Whether something is fitted on the validation set."""
        return self.saved is None and (self.fits_calibration or self.rule.needs_fit)

    @override
    def setup(self, stage: str) -> None:
        """Check that data, network and what is fitted belong together, before any picture is read.

        Raises:
            ValueError: training was asked for, labels are missing, or fit and report would be of the same pictures.
        """
        if stage == "fit":
            raise ValueError(
                "MultiLabelTask trains nothing. Fit a FineTuneTask, and evaluate its checkpoint with this one."
            )
        if stage != "predict" or self.needs_held_out:
            self.require_in_batch("label")
        self.configure_model()
        super().setup(stage)
        data = self.datamodule
        if not self.needs_held_out or data is None:
            return
        if stage == "validate":
            raise ValueError(f"Expected a report on other pictures than the validation set, which is fitted. {_REMEDY}")
        sets = getattr(data, "test_sets", {})
        same = [name for name, of_set in sets.items() if of_set is getattr(data, "val_set", None)]
        if stage == "test" and same:
            raise ValueError(
                f"Expected a test set to report on, but {type(data).__name__} has none: {same[0]!r} is the validation "
                f"set, which is fitted. {_REMEDY}"
            )

    @override
    def configure_model(self) -> None:
        """Make the classifier for the classes of the data, or take the prompts as classes."""
        names = list(getattr(self.datamodule, "class_names", None) or ())
        if self.prompts is None:
            super().configure_model()
        elif self.prompts == "classes":
            self.class_names = names
        else:
            self.class_names = list(self.prompts)
        if self.prompts is not None and not self.class_names:
            raise ValueError(
                "Expected names to ask for, got none. Give `model.init_args.prompts`, such as '[cat, dog]'."
            )

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take classes and classifier with the weights; prompts need the network alone."""
        if self.prompts is None:
            super().on_load_checkpoint(checkpoint)
            return
        weights = {name: value for name, value in checkpoint["state_dict"].items() if name.startswith("network.")}
        require_same_state(self.state_dict(), weights, "The checkpoint")
        checkpoint["state_dict"] = weights

    @override
    def classify(self, features: Tensor) -> Tensor:
        """Logits ``[B, C]`` of features ``[B, width]``, by the classifier or by the prompts."""
        if self._class_embeds is None:
            return super().classify(features)
        network = self.network
        assert isinstance(network, TwoTower)  # the constructor refuses others
        cosines = network.project_image(features).float() @ self._class_embeds.T
        logits = network.log_scale.exp() * cosines
        return logits if network.bias is None else logits + network.bias

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Refused; Lightning asks for the method before it lets :meth:`setup` say why."""
        raise ValueError(_NO_TRAINING)

    @override
    def on_validation_start(self) -> None:
        """Encode the prompts."""
        self._begin()

    @override
    def on_test_start(self) -> None:
        """Encode the prompts, and fit."""
        self._begin()

    @override
    def on_predict_start(self) -> None:
        """Encode the prompts, and fit."""
        self.begin_prediction()
        self._begin()

    @override
    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logits of one batch."""
        self.collect(batch, dataloader_idx)

    @override
    def on_validation_epoch_end(self) -> None:
        """Log the measures of the validation set."""
        self._report(["val"], "")

    @override
    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logits of one batch of one test set."""
        self.collect(batch, dataloader_idx)

    @override
    def on_test_epoch_end(self) -> None:
        """Log the measures of every test set."""
        self._report(self.test_names(len(self.trainer.num_test_batches)), "test/")

    @override
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> LabelScores:
        """The scores of one batch, without pictures that stand in for unreadable ones and come by themselves."""
        assert self.decision is not None  # since prediction began
        scores = self.calibration.probabilities(self.classify(self.features(batch)))
        passed = self.decision.passes(scores)
        truths = self._truths(batch)
        ids = ids_of(batch, 0, len(scores))
        found = LabelScores(ids, scores, passed, self.class_names, self.decision.thresholds, truths)
        return found.taken(self.first_seen(batch, len(scores), dataloader_idx))

    @override
    def label_scores(self, predictions: Predictions) -> LabelScores:
        assert self.decision is not None  # since evaluation began
        scores = self.calibration.probabilities(predictions.logits)
        return self._label_scores(predictions, scores, self.decision.passes(scores), self.decision.thresholds)

    def _begin(self) -> None:
        """What must be known before the first picture, the same on every process."""
        if self.prompts is None:
            self.require_head()
        names = list(getattr(self.datamodule, "class_names", None) or self.class_names)
        if self.prompts is not None:
            templates = self.templates or getattr(self.datamodule, "prompt_templates", None) or DEFAULT_TEMPLATES
            self._class_embeds = class_embeddings(self.class_names, self._encode, templates).to(self.device)
        if (not self.trainer.predicting or self.needs_held_out) and names != self.class_names:
            raise ValueError(
                f"Expected prompts for the {len(names)} classes of the data, in their order, since their labels are "
                f"compared; got {len(self.class_names)} prompts. Set `model.init_args.prompts: classes`, or predict."
            )
        if self.needs_held_out:
            self._fit()
        elif self.saved is not None:
            self._take_saved(self.saved)
        else:
            self.decision = self.rule.decision(len(self.class_names))

    def _encode(self, captions: list[str]) -> Tensor:
        network = self.network
        assert isinstance(network, TwoTower)  # the constructor refuses others
        return network.encode_text(network.tokenizer(captions).to(self.device)).float()

    def _take_saved(self, saved: SavedCalibration) -> None:
        if saved.class_names != self.class_names:
            raise ValueError(
                f"Expected a calibration of these {len(self.class_names)} classes in this order, got one of "
                f"{len(saved.class_names)}: {', '.join(saved.class_names[:5])}. Fit another."
            )
        self.calibration, self.decision = saved.calibration, saved.decision

    def _fit(self) -> None:
        """Fit on the validation set, which the first process sees whole."""
        held_out = self._validation_set()
        if held_out is not None:
            assert held_out.labels is not None  # `setup` asks for them
            if self.fits_calibration:
                fit = fit_calibration(
                    held_out.logits, held_out.labels, per_class_bias=self.per_class_bias, seed=self.seed
                )
                self.fit_result, self.calibration = fit, fit.calibration
                notice(f"Fitted on the validation set: {fit}.")
            scores = self.calibration.probabilities(held_out.logits)
            self.decision = self.rule.decision(len(self.class_names), scores, held_out.labels)
        self._held_out = held_out
        self.calibration, self.decision = self.trainer.strategy.broadcast((self.calibration, self.decision))

    def _validation_set(self) -> Predictions | None:
        """Logits and labels of the validation set, on the first process; Lightning does not run it before a test."""
        collected, strategy = CollectedSet(), self.trainer.strategy
        for loaded in self.datamodule.val_dataloader():
            batch = strategy.batch_to_device(self.trainer.precision_plugin.convert_input(loaded))
            with self.trainer.precision_plugin.forward_context():
                collected.add(batch, self.classify(self.features(batch)))
        group = None if self.trainer.world_size == 1 else dist.group.WORLD
        whole = collected.gathered(group)
        return None if whole is None else whole.predictions(self.class_names)

    def _report(self, names: Sequence[str], prefix: str) -> None:
        tables: dict[str, Evaluation] = {}
        self.reliability = {}
        values = self.evaluate(names, lambda name, found: self._evaluation(name, found, tables))
        self.evaluations = tables
        logged = {f"{prefix}{name}/{key}": v for name, of_set in values.items() for key, v in of_set.items()}
        self.log_dict(logged, batch_size=1, sync_dist=True, reduce_fx="max")  # of equal values, to the bit

    def _evaluation(self, name: str, found: Predictions, tables: dict[str, Evaluation]) -> Evaluation:
        """Fill in the tables of all activations, and give that of the calibrated one."""
        assert found.labels is not None  # `setup` asks for them
        held_out = None
        if self._held_out is not None and self._held_out.labels is not None:
            require_other_pictures(self._held_out, found)
            held_out = self._held_out.logits, self._held_out.labels
        targets = multi_hot(found.labels, len(self.class_names))
        _tell_empty_classes(name, targets)
        rule = self.rule if self.saved is None else self.saved.decision
        table = compare_activations(found.logits, targets, self.calibration, rule, held_out=held_out)
        self.reliability[name] = {
            activation: reliability_bins(scores(found.logits).sigmoid(), targets)
            for activation, scores in activations(len(self.class_names), self.calibration).items()
        }
        tables |= {f"{name}, {each}": Evaluation(f"{name}, {each}", metrics) for each, metrics in table.items()}
        return Evaluation(name, list(table.values())[-1])

    def _truths(self, batch: Batch) -> Tensor | None:
        """What is true of a batch's pictures, where the labels are those that are asked for."""
        if "label" not in batch or getattr(self.datamodule, "class_names", None) != self.class_names:
            return None
        return multi_hot(batch["label"], len(self.class_names)).bool()


def _tell_empty_classes(name: str, targets: Tensor) -> None:
    empty = int((targets.sum(0) == 0).sum())
    if empty:
        notice(
            f"{empty} of {targets.shape[1]} classes have no picture in {name!r}: mAP and macro F1 are means over the "
            "others."
        )
