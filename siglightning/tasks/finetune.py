"""Fine-tuning of an image tower as a classifier: its head alone, its last blocks, or all of it."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer
from typing_extensions import override

from siglightning.batch import Batch, InputSpec
from siglightning.distributed.strategy import group_of
from siglightning.distributed.watch import forget, set_step
from siglightning.evaluation import Evaluation, MetricValue
from siglightning.evaluation.classification import Predictions
from siglightning.evaluation.label_metrics import hits, label_metrics
from siglightning.losses import sigmoid_loss
from siglightning.losses.classification import ClassificationLoss, LossName
from siglightning.models import ImageEncoder, TwoTower
from siglightning.optim import GroupRule, Schedule, WeightDecayConvention, freeze
from siglightning.tasks.base import adamw
from siglightning.tasks.classifier import ClassifierTask
from siglightning.tasks.objective import Objective
from siglightning.tasks.unfreezing import Trained, describe_stages, first_epochs, left_to_train, still_frozen


class FineTuneTask(ClassifierTask):
    """Trains a linear classifier on the pooled feature of an image tower, and as much of the tower as ``train`` says.

    The feature is the tower's own: SigLIP's attention-pooling head, CLIP's projected class token, a convolutional
    tower's mean. What is not trained stays in evaluation mode. ``objective.contrastive`` adds the other half of the
    dual loss of A-CLIP-style training; ``micro_batch_size`` of the network makes 64 slices of 64 pictures one exact
    batch of 4,096.

    Labels are one class a picture, or, for every loss but cross entropy, several (float ``[B, C]``, multi-hot): the
    accuracy is then the share of pictures whose highest class is one of theirs, and validation and tests measure mAP,
    F1 at a probability of one half, and calibration.

    Validation and tests leave :attr:`predictions` and :attr:`evaluations`. A run keeps the weights with the best
    :attr:`monitor`: ``val/acc``, or ``val/mAP`` for several labels a picture.

    Args:
        network: the image tower, or two towers.
        train: ``linear``, ``full``, ``{last_n: 3}``, or a list such as ``[{last_n: 3}, {last_n: 6, from_epoch: 4}]``.
        loss: of the classifier; a name, or ``{name: em, entropy_weight: 0.2}``.
        objective: weights of the parts of the loss.
        num_classes: checked against the data; ``None`` takes what the data have.
        optimizer: from parameter groups to an optimizer.
        schedule: the learning rate over the run.
        rules: parameter groups, first match wins; names begin with ``network.`` or ``head.``.
        scalar_lr_mult: factor on the learning rate of t' and b.
        weight_decay_convention: ``torch``, times the learning rate, or ``independent`` of it, as the paper means it.
        seed: of the classifier's first weights, of dropout and whatever else is drawn on the device.

    Raises:
        ValueError: contrastive training without a text tower, or more blocks than the tower has.
    """

    resumes_epoch_means = True  # those of an epoch that a stop has cut cover all of it

    def __init__(
        self,
        network: ImageEncoder,
        train: Trained = "linear",
        loss: ClassificationLoss | LossName = "cross_entropy",
        objective: Objective = Objective(),  # noqa: B008  # frozen: nobody can change the default
        num_classes: int | None = None,
        optimizer: OptimizerCallable = adamw,
        schedule: Schedule = Schedule(warmup_steps=0.1),  # noqa: B008
        rules: Sequence[GroupRule] = (),
        scalar_lr_mult: float = 1.0,
        weight_decay_convention: WeightDecayConvention = "torch",
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, schedule, rules, scalar_lr_mult, seed, weight_decay_convention)
        if objective.contrastive and not isinstance(network, TwoTower):
            raise ValueError(
                "`objective.contrastive` compares pictures with class prompts and needs a text tower, got "
                f"{type(network).__name__}. Use siglightning.models.TwoTower as the network."
            )
        self.begin_classifier(network, num_classes)
        self.trained, self.objective = train, objective
        self.loss = loss if isinstance(loss, ClassificationLoss) else ClassificationLoss(loss)
        self._begins = first_epochs(network.image_tower, train)
        self.monitor = "val/acc"
        self._freeze_tower()
        tokenizer = network.tokenizer if objective.contrastive else None
        self.input_spec = InputSpec(network.image_size, tokenizer, network.feature_keys, network.resizing)
        self._frozen_now: list[nn.Module] = []
        self._frozen_epoch: int | None = None
        self._epoch_sums: Tensor | None = None

    @override
    def check_processes(self, trainer: Trainer) -> None:
        """Refuse what several processes cannot share exactly; the command line asks before they start.

        Raises:
            ValueError: BatchNorm in training, or what :class:`BaseTask` refuses.
        """
        super().check_processes(trainer)
        if trainer.world_size > 1 and self._trains_batchnorm():
            raise ValueError(
                f"The tower trains BatchNorm, whose statistics would be those of one of the {trainer.world_size} "
                "processes and not of the batch. Train fewer blocks or `linear`, or train on one process."
            )

    @override
    def setup(self, stage: str) -> None:
        """Check that data, network and objective belong together.

        Raises:
            ValueError: data without labels, with several for a picture where the loss or the prompts know one, or with
                other classes; accumulation that would be another objective; slices that do not fill the batch or cut
                BatchNorm.
        """
        if stage != "predict":
            self._require_labels_of_loss()
        self.configure_model()
        super().setup(stage)
        if stage == "fit":
            self._check_objective()
        if stage == "fit" and isinstance(self.network, TwoTower):
            self.network.set_auto_bias(len(self.class_names))  # of so many prompts one matches

    @override
    def configure_model(self) -> None:
        """Make the classifier for the classes of the data, and freeze what the rules say."""
        super().configure_model()
        if self.head is not None:
            freeze(self, self.rules)

    @override
    def parts(self) -> dict[str, str]:
        """What to call parameters in the table of groups: the classifier, the tower by stages, the rest."""
        names = {name: "classifier" if name.startswith("head.") else "texts" for name, _ in self.named_parameters()}
        for name, _ in self.network.image_tower.named_parameters():
            epoch = self._begins.get(name, 0)
            names[f"network.image_tower.{name}"] = "image tower" + (f" from epoch {epoch}" if epoch else "")
        return names

    @override
    def on_train_start(self) -> None:
        """Say what is trained; nothing is known of the modules' modes."""
        super().on_train_start()
        rank_zero_info(f"Trained: the classifier and {describe_stages(self.trained)}.")
        self._frozen_epoch = None
        forget(group_of(self.trainer.strategy))

    @override
    def on_train_epoch_start(self) -> None:
        """Begin the means of an epoch. Lightning does not call it in the middle of one that it resumes."""
        self._epoch_sums = None

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep what the epoch under way has summed, over all processes."""
        super().on_save_checkpoint(checkpoint)
        if self._epoch_sums is not None:
            checkpoint["epoch_sums"] = self._all_sums(self._epoch_sums).tolist()

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on with these sums, on the first process; the others begin at nothing."""
        super().on_load_checkpoint(checkpoint)
        sums = checkpoint.get("epoch_sums")
        if sums is not None:
            self._epoch_sums = torch.tensor(sums) * (self.global_rank == 0)

    @override
    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed the step, and keep what is not trained in this epoch in evaluation mode."""
        super().on_train_batch_start(batch, batch_idx)
        if self._frozen_epoch != self.epoch:
            self.network.train()
            self._frozen_epoch = self.epoch
            self._frozen_now = still_frozen(self.network.image_tower, self._trained_names(), self.epoch)
        for module in self._frozen_now:
            module.training = False

    @override
    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of a batch with keys ``image`` (or ``image_embed``), ``label``, and ``text`` for prompts."""
        slices = self.network.num_slices(len(batch["label"]))
        self.network.seed_slices(self.seed, self.global_step, self.global_rank * slices)
        features = self.features(batch)
        logits = self.classify(features)
        classification = self.loss(logits, batch["label"])
        loss = self.objective.classification * classification
        values = {"acc": hits(logits.detach(), batch["label"]).mean()}
        if self.objective.contrastive:
            contrastive = self._contrastive(features, batch)
            loss = loss + self.objective.contrastive * contrastive
            values |= {"classification_loss": classification.detach(), "contrastive_loss": contrastive.detach()}
        self._count(loss.detach(), values["acc"])
        if self.is_logging_step:
            self.log_train(loss.detach(), values)
        return loss

    @override
    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Drop the gradients of what is trained only later, before their norm is taken."""
        for name, parameter in self.network.image_tower.named_parameters():
            if self._begins.get(name, 0) > self.epoch:
                parameter.grad = None
        super().on_before_optimizer_step(optimizer)

    @override
    def on_train_epoch_end(self) -> None:
        """Log the epoch's mean loss and accuracy over all processes."""
        if self._epoch_sums is not None:
            loss, right, count = self._all_sums(self._epoch_sums).tolist()
            self._log_values({"train/epoch_loss": loss / count, "train/epoch_acc": right / count})
            self._epoch_sums = None

    @override
    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logits of one batch."""
        self.collect(batch, dataloader_idx)

    @override
    def on_validation_epoch_end(self) -> None:
        """Log loss and accuracy of the validation set."""
        is_training = self.trainer.state.fn == TrainerFn.FITTING  # its curves show no intervals
        resamples = 1 if is_training else 1000
        values = self.evaluate(["val"], lambda name, found: self._evaluation(name, found, resamples))
        if is_training:
            self.evaluations = {}
        self._log_values({f"val/{key}": value for key, value in values.get("val", {}).items()})

    @override
    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Logits of one batch of one test set."""
        self.collect(batch, dataloader_idx)

    @override
    def on_test_epoch_end(self) -> None:
        """Log loss and accuracy of every test set."""
        names = self.test_names(len(self.trainer.num_test_batches))
        values = self.evaluate(names, lambda name, found: self._evaluation(name, found, 1000))
        self._log_values({f"test/{name}/{key}": v for name, of_set in values.items() for key, v in of_set.items()})

    @override
    def on_predict_start(self) -> None:
        """Refuse to predict without classes, before the first picture."""
        self.require_head()
        self.begin_prediction()

    @override
    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Columns of :meth:`best_classes`: shares are softmax after cross entropy, else sigmoid."""
        activation: Literal["softmax", "sigmoid"] = "softmax" if self.loss.name == "cross_entropy" else "sigmoid"
        return self.best_classes(batch, dataloader_idx, activation)

    @property
    def epoch(self) -> int:
        """The epoch under way, counted from 0, by the number of steps done."""
        steps = getattr(self.datamodule, "steps_per_epoch", None)
        if steps is None:
            return self.current_epoch
        return int(self.global_step // -(-steps // self.trainer.accumulate_grad_batches))

    def _contrastive(self, features: Tensor, batch: Batch) -> Tensor:
        """Sigmoid loss of pictures and class prompts, over the batches of all processes."""
        network, group = self.network, group_of(self.trainer.strategy)
        assert isinstance(network, TwoTower)  # the constructor refuses others
        if group is not None:
            set_step(group, self.global_step)
        return sigmoid_loss(
            network.project_image(features),
            network.encode_text(batch["text"]),
            network.log_scale,
            network.bias,
            match_ids=batch["match_id"],
            group=group,
        )

    def _evaluation(self, name: str, predictions: Predictions, num_resamples: int) -> Evaluation:
        metrics = label_metrics(predictions, num_resamples)
        unknown = float("nan")
        assert predictions.labels is not None  # `label_metrics` asks for them
        value = self.loss(predictions.logits, predictions.labels).item()
        loss = MetricValue(value, unknown, unknown, unknown, len(predictions.ids))
        return Evaluation(name, {"loss": loss, **metrics})

    def _require_labels_of_loss(self) -> None:
        """Refuse several labels a picture where only one can be learnt."""
        self.require_in_batch("label")
        several = getattr(self.datamodule, "example", {"label": torch.empty(0)})["label"].ndim == 2
        if several and (self.loss.name == "cross_entropy" or self.objective.contrastive):
            what = "the loss cross_entropy" if self.loss.name == "cross_entropy" else "`objective.contrastive`"
            raise ValueError(
                f"FineTuneTask with {what} needs one class for each picture, but {type(self.datamodule).__name__} "
                "gives several. Set `model.init_args.loss: bce` without prompts, or take data with one."
            )
        self.monitor = "val/mAP" if several else "val/acc"

    def _count(self, loss: Tensor, right: Tensor) -> None:
        values = torch.stack([loss.float(), right, torch.ones_like(right)])
        self._epoch_sums = values if self._epoch_sums is None else self._epoch_sums.to(values.device) + values

    def _all_sums(self, sums: Tensor) -> Tensor:
        """Over all processes; a copy, since reducing writes into what it is given."""
        total: Tensor = self.trainer.strategy.reduce(sums.to(self.device, copy=True), reduce_op="sum")
        return total

    def _log_values(self, values: dict[str, float]) -> None:
        self.log_dict(values, batch_size=1, sync_dist=True, reduce_fx="max")  # of equal values, to the bit

    def _freeze_tower(self) -> None:
        """Leave gradients to what is ever trained: parts of the tower, and what the contrastive loss goes through."""
        for name, parameter in self.network.named_parameters():
            inner = name.removeprefix("image_tower.")
            if inner != name:
                parameter.requires_grad_(parameter.requires_grad and inner in self._begins)
            elif not self.objective.contrastive:
                parameter.requires_grad_(False)

    def _trained_names(self) -> dict[str, int]:
        return left_to_train(self.network.image_tower, self._begins, self.rules, "network.image_tower.")

    def _trains_batchnorm(self) -> bool:
        tower = self.network.image_tower
        frozen = {id(module) for module in still_frozen(tower, self._trained_names(), 2**31)}
        return any(isinstance(layer, _BatchNorm) and id(layer) not in frozen for layer in tower.modules())

    def _check_objective(self) -> None:
        self.check_processes(self.trainer)
        accumulated = self.trainer.accumulate_grad_batches
        if self.objective.contrastive and accumulated > 1:
            raise ValueError(
                f"accumulate_grad_batches={accumulated} does not make the contrastive part see a larger batch: set "
                "`global_batch_size` to the whole and the network's `micro_batch_size` to what fits."
            )
        if self.objective.contrastive:
            self.require_in_batch("text", "match_id")
        if self.network.micro_batch_size is not None and self._trains_batchnorm():
            raise ValueError(
                "micro_batch_size cannot be used where the tower trains BatchNorm: its statistics would be those of a "
                "slice. Train fewer blocks or `linear`, or set micro_batch_size: null."
            )
        size = getattr(self.datamodule, "global_batch_size", None)
        if size is not None:
            self.network.num_slices(int(size) // self.trainer.world_size)  # refuses slices that do not fill the batch
