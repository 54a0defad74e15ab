"""What tasks with a classifier share: its classes, its checkpoint, and what it says of whole evaluation sets."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from typing_extensions import override

from siglightning.batch import Batch
from siglightning.evaluation import Evaluation
from siglightning.evaluation.classification import Predictions
from siglightning.evaluation.collected import CollectedSet, ids_of
from siglightning.evaluation.label_scores import LabelScores
from siglightning.evaluation.targets import multi_hot
from siglightning.losses.classification import check_labels
from siglightning.models import ImageEncoder
from siglightning.runtime.differences import require_same_state
from siglightning.runtime.processes import notice
from siglightning.tasks.base import BaseTask

_INIT_STD = 0.01  # of the classifier's weights: first answers are nearly equal, and the first loss is log C


class ClassifierTask(BaseTask):
    """An image tower and a linear classifier on its pooled feature.

    Attributes:
        network: the image tower, or two towers.
        head: the classifier; ``None`` until the classes are known, from the data or from a checkpoint.
        class_names: in the order of its outputs.
        predictions: of the last validation or test, by set, on the first process.
        evaluations: metrics of the same, by set.
    """

    network: ImageEncoder
    head: nn.Linear | None
    class_names: list[str]
    predictions: dict[str, Predictions]
    evaluations: dict[str, Evaluation]

    def begin_classifier(self, network: ImageEncoder, num_classes: int | None) -> None:
        """Set the attributes; a subclass calls it in its constructor.

        Args:
            network: the image tower, or two towers.
            num_classes: checked against the data; ``None`` takes what the data have.
        """
        self.network, self.num_classes, self.class_names = network, num_classes, []
        self.head = None
        self.predictions, self.evaluations = {}, {}
        self._offered: tuple[list[str], dict[str, Tensor]] | None = None
        self._sets: dict[int, CollectedSet] = {}
        self._predicted: dict[int, set[str]] = {}
        self._left_out = 0
        if num_classes is not None:
            self._make_head(num_classes)

    def features(self, batch: Batch) -> Tensor:
        """Pooled features ``[B, width]`` of a batch's pictures, or those that were stored."""
        return batch["image_embed"] if "image_embed" in batch else self.network.encode_features(batch["image"])

    @override
    def finite_rows(self, batch: Batch) -> Tensor:
        return self.features(batch).isfinite().all(1)

    def classify(self, features: Tensor) -> Tensor:
        """Logits ``[B, C]`` of features ``[B, width]``.

        Raises:
            ValueError: nobody has told the classes.
        """
        logits: Tensor = self.require_head()(features)
        return logits

    def require_head(self) -> nn.Linear:
        """The classifier.

        Raises:
            ValueError: nobody has told the classes.
        """
        if self.head is None:
            raise ValueError(
                "The classifier has no classes yet: give a checkpoint of a fine-tuned model (--ckpt_path, or --run_dir "
                "of its run), or data with classes."
            )
        return self.head

    def offer_head(self, class_names: list[str], weights: dict[str, Tensor]) -> None:
        """Begin with the classifier of another run, if it has the classes that the data will tell.

        Args:
            class_names: its classes, in the order of its outputs.
            weights: ``weight`` ``[C, width]`` and ``bias`` ``[C]``.
        """
        self._offered = class_names, weights

    @override
    def configure_model(self) -> None:
        """Make the classifier for the classes of the data.

        Lightning calls it after the data are set up and before it loads a checkpoint; its callback for averaged weights
        calls it when that begins. A second call changes nothing.
        """
        names = list(getattr(self.datamodule, "class_names", None) or ())
        if names:
            self._take_classes(names, f"the data ({type(self.datamodule).__name__})")

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the names of the classes beside the weights."""
        super().on_save_checkpoint(checkpoint)
        checkpoint["class_names"] = list(self.class_names)

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Make the classifier for a checkpoint's classes where the data tell none.

        Raises:
            ValueError: its classes are others than those of the data, or its weights those of another network.
        """
        super().on_load_checkpoint(checkpoint)
        names = checkpoint.get("class_names")
        if not names:
            raise ValueError(
                "Expected a checkpoint of a classifier, with `class_names`, got one without. Weights of a pre-trained "
                "tower belong to the network: give `pretrained` of its `image_tower`."
            )
        self._take_classes(list(names), "the checkpoint")
        require_same_state(self.state_dict(), checkpoint["state_dict"], "The checkpoint")

    @override
    def setup(self, stage: str) -> None:
        """Apply the rules that freeze.

        Raises:
            ValueError: data with sets that have classes of their own.
        """
        super().setup(stage)
        if getattr(self.datamodule, "zeroshot_sets", None):
            raise ValueError(
                f"`data.init_args.zeroshot_sets` are classified by prompts, but {type(self).__name__} knows only the "
                "classes of the data. Evaluate them with ContrastiveTask, or leave them out."
            )

    @override
    def on_before_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Check labels for training while they are on the host, where nobody waits for them.

        Raises:
            ValueError: a label that no class has.
        """
        if self.trainer.training and self.class_names:
            check_labels(batch["label"], len(self.class_names))
        return batch

    def collect(self, batch: Batch, dataloader_idx: int) -> None:
        """Keep the logits of one batch of an evaluation set."""
        logits = self.classify(self.features(batch))
        self._sets.setdefault(dataloader_idx, CollectedSet()).add(batch, logits)

    def evaluate(
        self, names: Sequence[str], evaluation_of: Callable[[str, Predictions], Evaluation]
    ) -> dict[str, dict[str, float]]:
        """Gather what was collected on the first process, which evaluates it.

        Args:
            names: of the sets, in the order of their loaders.
            evaluation_of: from a set's name and predictions to its metrics.

        Returns:
            Values by set and metric, the same on every process.
        """
        group = None if self.trainer.world_size == 1 else dist.group.WORLD
        shares = [self._sets.pop(index, CollectedSet()) for index in range(len(names))]
        wholes = [share.gathered(group) for share in shares]
        self._tell_repeated(names, wholes)
        found = {name: whole for name, whole in zip(names, wholes, strict=True) if whole is not None and whole.ids}
        self.predictions = {name: whole.predictions(self.class_names) for name, whole in found.items()}
        self.evaluations = {name: evaluation_of(name, each) for name, each in self.predictions.items()}
        values = {
            name: {key: metric.value for key, metric in evaluation.metrics.items()}
            for name, evaluation in self.evaluations.items()
        }
        return self.trainer.strategy.broadcast(values)

    def test_names(self, count: int) -> list[str]:
        """Names of the test sets, in the order of their ``count`` loaders."""
        return getattr(self.datamodule, "test_set_names", None) or [f"set {index}" for index in range(count)]

    def begin_prediction(self) -> None:
        """Forget which pictures have been predicted."""
        self._predicted, self._left_out = {}, 0

    def first_seen(self, batch: Batch, count: int, dataloader_idx: int) -> list[int]:
        """Rows of a batch of ``count`` pictures that have not come before in this prediction.

        A picture that cannot be read is replaced by another one, which also comes by itself and must not be told twice.
        """
        ids = ids_of(batch, 0, count)
        if "id" not in batch:
            return list(range(count))
        seen = self._predicted.setdefault(dataloader_idx, set())
        rows = [row for row, key in enumerate(ids) if key not in seen and key not in ids[:row]]
        seen.update(ids)
        self._left_out += count - len(rows)
        return rows

    def label_scores(self, predictions: Predictions) -> LabelScores:
        """Labels of pictures that have several: sigmoid of the logits, given out above one half."""
        scores = predictions.logits.sigmoid()
        return self._label_scores(predictions, scores, scores > 0.5, torch.full(scores.shape[1:], 0.5))

    def _label_scores(
        self, predictions: Predictions, scores: Tensor, passed: Tensor, thresholds: Tensor | None
    ) -> LabelScores:
        truths = None if predictions.labels is None else multi_hot(predictions.labels, scores.shape[1]).bool()
        return LabelScores(predictions.ids, scores, passed, predictions.class_names, thresholds, truths)

    def best_classes(
        self, batch: Batch, dataloader_idx: int, activation: Literal["softmax", "sigmoid"]
    ) -> dict[str, Any]:
        """The best class of each picture of a batch that has not come before.

        Returns:
            ``id``; ``prediction``, a class's name; its ``probability``; ``label``, the true class's name, or ``None``
            where the data do not tell one; ``logits`` float32 ``[B, C]``, in the order of :attr:`class_names`.
        """
        logits = self.classify(self.features(batch)).float()
        rows, ids = self.first_seen(batch, len(logits), dataloader_idx), ids_of(batch, 0, len(logits))
        logits = logits[rows]
        probability, best = (logits.softmax(1) if activation == "softmax" else logits.sigmoid()).max(1)
        return {
            "id": [ids[row] for row in rows],
            "prediction": [self.class_names[column] for column in best.tolist()],
            "probability": probability,
            "label": self._true_names(batch, rows),
            "logits": logits,
        }

    @override
    def on_predict_end(self) -> None:
        """Say how many pictures have no prediction."""
        if self._left_out:
            notice(f"{self._left_out} pictures could not be read, or came twice, and have no prediction of their own.")

    @property
    def datamodule(self) -> Any:
        """The Trainer's data module; ``None`` without one."""
        return getattr(self._trainer, "datamodule", None)

    def _tell_repeated(self, names: Sequence[str], wholes: Sequence[CollectedSet | None]) -> None:
        for name, whole in zip(names, wholes, strict=True):
            if whole is not None and whole.repeated:
                notice(f"{whole.repeated} pictures of {name!r} could not be read, or came twice, and do not count.")

    def _true_names(self, batch: Batch, rows: list[int]) -> list[str] | None:
        same = getattr(self.datamodule, "class_names", None) == self.class_names
        if "label" not in batch or batch["label"].ndim != 1 or not same:
            return None
        return [self.class_names[label] for label in batch["label"][rows].tolist()]

    def _take_classes(self, names: list[str], where: str) -> None:
        """Make the classifier, or check that it has these classes."""
        if len(names) < 2:
            raise ValueError(f"Expected at least two classes to tell apart, got {names} from {where}.")
        if self.num_classes is not None and len(names) != self.num_classes:
            raise ValueError(
                f"Expected {self.num_classes} classes, as `num_classes` says, got {len(names)} from {where}: "
                f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}. Correct it, or set it to null."
            )
        if self.class_names and names != self.class_names:
            raise ValueError(_difference(self.class_names, names, where))
        self.class_names = names
        if self.head is None:
            self._make_head(len(names))
        if self._offered is not None:
            self._take_offered(*self._offered)
            self._offered = None

    def _take_offered(self, class_names: list[str], weights: dict[str, Tensor]) -> None:
        if class_names == self.class_names:
            self.require_head().load_state_dict(weights)
            notice(f"  taken: classifier, the same {len(class_names)} classes")
        else:
            odd = sorted(set(class_names) ^ set(self.class_names))
            reason = f"only one of both has {odd[0]!r}" if odd else "in another order"
            counts = f"{len(class_names)} classes there, {len(self.class_names)} here"
            notice(f"  begins as built: classifier ({counts}; {reason})")

    def _make_head(self, count: int) -> None:
        """Weights depend on the seed alone, so that all processes agree."""
        head = nn.Linear(self.network.image_tower.width, count)
        generator = torch.Generator().manual_seed(self.seed)
        with torch.no_grad():
            head.weight.normal_(0, _INIT_STD, generator=generator)
            head.bias.zero_()
        self.head = head.to(self.device)


def _difference(have: list[str], got: list[str], where: str) -> str:
    """The first class in which two lists differ, in words."""
    if sorted(have) == sorted(got):
        number = next(i for i, (a, b) in enumerate(zip(have, got, strict=True)) if a != b)
        return (
            f"Expected the classes in the order that the classifier has, got another from {where}: number {number} is "
            f"{got[number]!r} instead of {have[number]!r}. Give `class_names` in the old order."
        )
    odd = sorted(set(have) ^ set(got))
    return (
        f"Expected the {len(have)} classes that the classifier has, got {len(got)} from {where}; only one of both has "
        f"{', '.join(odd[:5])}{' ...' if len(odd) > 5 else ''}. Use the data that it was trained on."
    )
