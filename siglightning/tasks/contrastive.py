"""Contrastive pre-training of two towers with the sigmoid or the softmax loss."""

from collections.abc import Sequence
from typing import Any, Literal

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from siglightning.batch import Batch, InputSpec
from siglightning.distributed.exchange import Accumulators, Comm
from siglightning.distributed.strategy import group_of
from siglightning.distributed.watch import forget, set_step
from siglightning.evaluation import Evaluation, Predictions, ReliabilityBins, collapse_metrics, pair_logits
from siglightning.losses import Negatives, sigmoid_loss, softmax_loss
from siglightning.losses.backends import Backend
from siglightning.models import TwoTower, has_trainable_batchnorm
from siglightning.optim import GroupRule, Schedule, WeightDecayConvention
from siglightning.tasks.base import BaseTask, adamw
from siglightning.tasks.embeddings import EmbeddedSet, embed_images, embed_texts, finite_pairs
from siglightning.tasks.pair_evaluation import PairEvaluation, loss_of_groups, values_to_log
from siglightning.tasks.zeroshot import SetTemplates, ZeroShot, check_templates, classes_of_sets, tell_repeated


class ContrastiveTask(BaseTask):
    """Trains a :class:`~siglightning.models.TwoTower` on image-text pairs.

    Validation reports the training loss itself, over fixed groups of ``global_batch_size`` pairs (with all their
    negatives, so that masks can be compared), exact retrieval both ways, and zero-shot accuracy where the data module
    has classes, also those of its ``zeroshot_sets``. Tests do the same for each test set and leave :attr:`evaluations`,
    with a row ``average`` over the ``averaged_test_sets`` of the data, and zero-shot :attr:`predictions` where there
    are classes, for tables and figures. With a bias they, and a validation by itself, also measure how far pairs'
    probabilities can be believed, and leave :attr:`reliability`; validation in training does so with
    ``calibration_in_fit``.
    After either, callbacks find the sets' embeddings in :attr:`embedded`, on the first process, until it ends.

    On several processes each encodes its share of the global batch and the loss goes round the ring of
    :class:`~siglightning.distributed.RingDDPStrategy` (under any other DDP, of all processes), so that the objective
    is that of one process on the whole batch. Evaluation sets are embedded and compared in shares, too, and what the
    first process gathers of them does not depend on how many there were.

    Args:
        network: the two towers with t' and b.
        loss: ``sigmoid`` (SigLIP) or ``softmax`` (CLIP; its network has ``init_bias: null``).
        match: what other rows with the same ``match_id`` are to the sigmoid loss: positives too, left out
            (``ignore``), or negatives like any other (``none``, which is what other trainers do).
        negatives: which negatives of the global batch the sigmoid loss counts in training (SigLIP paper, section 4.8);
            all unless given. For as many pairs as a run without it sees, set ``trainer.max_steps`` to
            :meth:`Negatives.matched_steps <siglightning.losses.Negatives.matched_steps>`, steps * B / (1 + ratio).
        optimizer: from parameter groups to an optimizer; AdamW with beta2 = .95 unless given.
        schedule: the learning rate over the run.
        rules: parameter groups, first match wins; names begin with ``network.``.
        scalar_lr_mult: factor on the learning rate of t' and b, which at the towers' rate hardly move in a short run.
        weight_decay_convention: ``torch``, times the learning rate, or ``independent`` of it, as the paper means it.
        chunk_size: side of a tile of the loss in rows.
        comm: how texts travel between processes, ``ring`` or ``gather``; the numbers are the same.
        accumulators: how their gradients do, ``full`` or rounded to ``bf16``; see the sigmoid loss.
        backend: what forms the loss, ``eager``, ``triton`` or ``auto``, a fused kernel where it is fast.
        allow_accumulation: accept ``trainer.accumulate_grad_batches > 1``, which is another objective.
        templates: of zero-shot prompts, in the place of the data's: a list, a name such as ``imagenet`` (see
            :func:`~siglightning.evaluation.prompts.templates_of`), or either of them by the set's name.
        calibration_in_fit: measure the calibration of pairs while training, too; it takes longer than ranking.
        seed: of dropout and whatever else is drawn on the device, together with the step.

    Raises:
        ValueError: a softmax loss with a bias or with masked negatives.
    """

    def __init__(
        self,
        network: TwoTower,
        loss: Literal["sigmoid", "softmax"] = "sigmoid",
        match: Literal["positive", "ignore", "none"] = "positive",
        negatives: Negatives | None = None,
        optimizer: OptimizerCallable = adamw,
        schedule: Schedule = Schedule(warmup_steps=0.1),  # noqa: B008  # frozen: nobody can change the default
        rules: Sequence[GroupRule] = (),
        scalar_lr_mult: float = 1.0,
        weight_decay_convention: WeightDecayConvention = "torch",
        chunk_size: int | None = None,
        comm: Comm = "ring",
        accumulators: Accumulators = "full",
        backend: Backend = "auto",
        allow_accumulation: bool = False,
        templates: SetTemplates | None = None,
        calibration_in_fit: bool = False,
        seed: int = 0,
    ) -> None:
        super().__init__(optimizer, schedule, rules, scalar_lr_mult, seed, weight_decay_convention)
        if loss == "softmax" and network.bias is not None:
            raise ValueError(
                "The softmax loss has no bias (a constant cancels), got a network with one. Set "
                "`model.init_args.network.init_args.init_bias: null`."
            )
        if loss == "softmax" and negatives is not None:
            raise ValueError(
                f"Masks of negatives belong to the sigmoid loss, got {negatives} with the softmax loss, which compares "
                "each pair with all others. Set `model.init_args.loss: sigmoid` or leave `negatives` out."
            )
        self.network, self.loss_name, self.match, self.negatives = network, loss, match, negatives
        self.chunk_size, self.comm, self.allow_accumulation = chunk_size, comm, allow_accumulation
        self.loss_options = {"comm": comm, "accumulators": accumulators, "chunk_size": chunk_size, "backend": backend}
        self.templates, self.calibration_in_fit = templates, calibration_in_fit
        self.input_spec = InputSpec(network.image_size, network.tokenizer, network.feature_keys, network.resizing)
        self.evaluations: dict[str, Evaluation] = {}
        self.predictions: dict[str, Predictions] = {}
        self.reliability: dict[str, dict[str, ReliabilityBins]] = {}
        self.embedded: dict[str, EmbeddedSet] = {}
        self._sets: dict[int, EmbeddedSet] = {}
        self._zeroshot: ZeroShot | None = None

    def check_processes(self, trainer: Trainer) -> None:
        """Refuse what several processes cannot share exactly; the command line asks before they start.

        Raises:
            ValueError: BatchNorm in training, or what :class:`BaseTask` refuses.
        """
        super().check_processes(trainer)
        if trainer.world_size > 1 and has_trainable_batchnorm(self.network):
            raise ValueError(
                f"A tower trains BatchNorm, whose statistics would be those of one of the {trainer.world_size} "
                "processes and not of the batch. Choose a tower without BatchNorm, freeze it, or train on one process."
            )

    def check_batch(self, trainer: Trainer, global_batch_size: int) -> None:
        """Refuse a global batch with which this would not be the objective; the command line asks before data are read.

        Raises:
            ValueError: slices that do not fill it, too few negatives for the masks, or accumulation without
                ``allow_accumulation``.
        """
        batches, pairs = trainer.accumulate_grad_batches, global_batch_size
        self.network.num_slices(pairs // trainer.world_size)
        if self.negatives is not None:
            self.negatives.check_batch(pairs)
        if batches > 1 and not self.allow_accumulation:
            raise ValueError(
                f"accumulate_grad_batches={batches} does not make a batch of {pairs * batches}: negatives per image "
                f"stay {pairs - 1}, not {pairs * batches - 1}. For the large batch set `global_batch_size: "
                f"{pairs * batches}` and the network's `micro_batch_size: {pairs}`; to accumulate all the same, set "
                "`model.init_args.allow_accumulation: true`."
            )

    def setup(self, stage: str) -> None:
        """Check what would silently be another objective, and match b to the batch where asked to.

        Raises:
            ValueError: accumulation without ``allow_accumulation``, processes that could not be exact, data without
                captions, or templates that cannot be used.
        """
        super().setup(stage)
        if stage != "predict":
            self.require_in_batch("text")
            check_templates(self.templates, self._datamodule)
        if stage != "fit":
            return
        self.check_processes(self.trainer)
        self.check_batch(self.trainer, self.global_batch_size)
        self.network.set_auto_bias(self.global_batch_size)

    def loss(
        self,
        image_embeds: Tensor,
        text_embeds: Tensor,
        match_ids: Tensor | None,
        group: dist.ProcessGroup | None = None,
        step: int | None = None,
    ) -> Tensor:
        """The loss of unit embeddings ``[b, d]`` and match ids int64 ``[b]``; a scalar in nats.

        With a ``group`` the batch is that of all its processes, and the mean over them is the loss. With the ``step``
        of training its negatives are masked as the task says, without it all of them count.
        """
        network = self.network
        options: dict[str, Any] = {"group": group, **self.loss_options}
        if self.loss_name == "softmax":
            return softmax_loss(image_embeds, text_embeds, network.log_scale, **options)
        return sigmoid_loss(
            image_embeds,
            text_embeds,
            network.log_scale,
            network.bias,
            match_ids=None if self.match == "none" else match_ids,
            match="ignore" if self.match == "ignore" else "positive",
            negatives=None if step is None else self.negatives,
            step=step or 0,
            **options,
        )

    def on_fit_start(self) -> None:
        """A new training may have other batches than the one before."""
        super().on_fit_start()
        forget(group_of(self.trainer.strategy))

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Loss of one batch with keys ``image`` (or ``image_embed``), ``text`` and perhaps ``match_id``."""
        slices = self.network.num_slices(len(batch["text"]))
        self.network.seed_slices(self.seed, self.global_step, self.global_rank * slices)
        image_embeds, text_embeds = embed_images(self.network, batch), embed_texts(self.network, batch)
        match_ids, group = batch.get("match_id"), group_of(self.trainer.strategy)
        if group is not None:
            set_step(group, self.global_step)
        loss = self.loss(image_embeds, text_embeds, match_ids, group, step=self.global_step)
        if self.is_logging_step:
            self.log_train(loss.detach(), self._monitored(loss, image_embeds, text_embeds, match_ids))
        return loss

    def finite_rows(self, batch: Batch) -> Tensor:  # noqa: D102 - of the base
        return finite_pairs(self.network, batch)

    def on_validation_start(self) -> None:
        """Encode the prompts of all classes."""
        self._begin_zeroshot(getattr(self._datamodule, "val_set_names", ["val"]))

    def validation_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embed one batch."""
        self._embed(batch, dataloader_idx)

    def on_validation_epoch_end(self) -> None:
        """Log the loss, retrieval and zero-shot accuracy of the validation set, and of others the accuracy."""
        is_training = self.trainer.state.fn == TrainerFn.FITTING  # its curves show no intervals
        names = getattr(self._datamodule, "val_set_names", ["val"])
        num_resamples = 1 if is_training else 1000
        found = self._evaluate_all(names, num_resamples)
        if "val" in self.embedded:
            groups = self.embedded["val"].loss_groups(self.global_batch_size)
            found["val"].metrics["loss"] = loss_of_groups(groups, self.loss, self.device, num_resamples)
        self.evaluations = {} if is_training else found
        self.predictions = {} if is_training else self.predictions
        self._log_everywhere(values_to_log(found, "val", own="val"))

    def on_validation_end(self) -> None:
        """Callbacks have seen the embeddings."""
        self.embedded = {}

    def on_test_start(self) -> None:
        """Encode the prompts of all classes."""
        self._begin_zeroshot(self._test_names)

    def test_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Embed one batch of one test set."""
        self._embed(batch, dataloader_idx)

    def on_test_epoch_end(self) -> None:
        """Evaluate every test set and keep the results in :attr:`evaluations`, on the first process."""
        self.evaluations = self._evaluate_all(self._test_names, num_resamples=1000)
        self._log_everywhere(values_to_log(self.evaluations, "test"))

    def on_test_end(self) -> None:
        """Callbacks have seen the embeddings."""
        self.embedded = {}

    def predict_step(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> dict[str, Any]:
        """Embeddings of one batch: ``id``, ``image_embed [B, d]`` and, where there are captions, ``text_embed``."""
        out: dict[str, Any] = {"id": batch.get("id"), "image_embed": embed_images(self.network, batch)}
        return out | ({"text_embed": embed_texts(self.network, batch)} if "text" in batch else {})

    @property
    def global_batch_size(self) -> int:
        """Pairs in a global batch, as the data module says.

        Raises:
            ValueError: a data module without ``global_batch_size``.
        """
        size = getattr(self._datamodule, "global_batch_size", None)
        if size is None:
            raise ValueError(
                "Contrastive training needs to know its batch, got a data module without `global_batch_size`. "
                "Derive it from siglightning.data.BaseDataModule or give it that attribute."
            )
        return int(size)

    @property
    def _datamodule(self) -> Any:
        return getattr(self.trainer, "datamodule", None)

    def _monitored(
        self, loss: Tensor, image_embeds: Tensor, text_embeds: Tensor, match_ids: Tensor | None
    ) -> dict[str, Tensor]:
        """What is logged beside the loss; of several processes each looks at its own rows, and their mean is logged."""
        network, images = self.network, len(image_embeds) * self.trainer.world_size
        pairs_a_step = images * (images if self.negatives is None else 1 + self.negatives.ratio)
        pairs_seen = (self.global_step + 1) * self.trainer.accumulate_grad_batches * pairs_a_step
        logits = pair_logits(image_embeds, text_embeds, network.log_scale, network.bias, match_ids)
        values = {
            "loss_per_pair": loss.detach() * images / pairs_a_step,
            "pairs_seen": loss.new_tensor(pairs_seen),  # repeated captions aside
            "logit_scale": network.log_scale.detach().exp().squeeze(),
            "positive_logit": logits.positive.float(),
            "negative_logit": logits.negative.float(),
        }
        values |= collapse_metrics(image_embeds, text_embeds)
        return values if network.bias is None else values | {"logit_bias": network.bias.detach().squeeze()}

    @property
    def _test_names(self) -> list[str]:
        count = len(self.trainer.num_test_batches)
        return getattr(self._datamodule, "test_set_names", None) or [f"set {index}" for index in range(count)]

    @property
    def _world(self) -> dist.ProcessGroup | None:
        return None if self.trainer.world_size == 1 else dist.group.WORLD

    def _begin_zeroshot(self, names: Sequence[str]) -> None:
        classes = classes_of_sets(names, self._datamodule, self.templates)
        if self.trainer.state.fn != TrainerFn.FITTING:
            tell_repeated(dict(zip(names, classes, strict=True)))
        self._zeroshot = ZeroShot(classes, self._encode_captions, self.network.log_scale.exp().item(), self._world)

    def _embed(self, batch: Batch, dataloader_idx: int) -> None:
        image_embeds = embed_images(self.network, batch)
        assert self._zeroshot is not None  # since the evaluation began
        self._zeroshot.add(batch, image_embeds, dataloader_idx)
        if "text" in batch:
            texts = embed_texts(self.network, batch)
            self._sets.setdefault(dataloader_idx, EmbeddedSet()).add(batch, image_embeds, texts)

    def _evaluate_all(self, names: Sequence[str], num_resamples: int) -> dict[str, Evaluation]:
        """Retrieval where there are captions and accuracy where there are classes, by set, on the first process."""
        calibrates = self.calibration_in_fit or self.trainer.state.fn != TrainerFn.FITTING
        pairs = PairEvaluation(self.network, self._world, self.device, calibrates)
        self.embedded, found = {}, {}
        for index, name in enumerate(names):
            whole = self._sets.pop(index, EmbeddedSet()).gathered(self._world)
            evaluation = pairs.evaluate(name, whole, num_resamples)
            if whole is not None and evaluation is not None:
                self.embedded[name], found[name] = whole, evaluation
        self.reliability = pairs.reliability
        assert self._zeroshot is not None  # since the evaluation began
        zeroshot, self._zeroshot = self._zeroshot, None
        self.predictions = zeroshot.finish(names)
        for name, predictions in self.predictions.items():
            accuracy = zeroshot.metrics(predictions, num_resamples)
            found.setdefault(name, Evaluation(name, {})).metrics.update(accuracy)
        averaged = getattr(self._datamodule, "averaged_test_sets", ())
        average = pairs.average(averaged, found, num_resamples)
        return {name: found[name] for name in names if name in found} | average

    def _log_everywhere(self, values: dict[str, float]) -> None:
        """Log what the first process found, on every one: checkpoints are chosen by it."""
        values = self.trainer.strategy.broadcast(values)
        self.log_dict(values, batch_size=1, sync_dist=True, reduce_fx="max")  # of equal values, to the bit

    def _encode_captions(self, captions: list[str]) -> Tensor:
        return self.network.encode_text(self.network.tokenizer(captions).to(self.device)).float().cpu()
