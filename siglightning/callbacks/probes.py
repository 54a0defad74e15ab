"""What the features of a frozen network are good for: few-shot classification and a linear probe."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from siglightning.callbacks.figures import figure_folder
from siglightning.callbacks.probe_page import draw_probes
from siglightning.evaluation import Evaluation, MetricValue
from siglightning.evaluation.collected import CollectedSet
from siglightning.evaluation.fewshot import SHOTS, few_shot_accuracy
from siglightning.evaluation.probe import L2_REGS, held_out_rows, linear_probe
from siglightning.runtime.processes import notice

Features = tuple[Tensor, Tensor]


class ProbeEvaluation(Callback):
    """Evaluates the image tower by simple classifiers on its features, in `validate`, in `test` and during `fit`.

    The training pictures, only resized, and those of the evaluated sets go through the network once, each process
    embedding its share; the first process fits and reports. Metrics stand beside the task's own: ``fewshot@10`` is
    ridge regression on ten pictures of each class as in big_vision (:mod:`siglightning.evaluation.fewshot`), mean over
    draws; ``probe_acc`` is logistic regression on all (:mod:`siglightning.evaluation.probe`), with the penalty chosen
    on the validation set, or on a fifth of the training pictures where the validation set is what is reported. The
    network is not changed. A validation by itself or a test leaves the page ``figures/probes.png``.

    It serves any task with a ``network`` of ours and data with one label a picture. Sets with classes of their own
    (``zeroshot_sets``) have nothing to train on and are left out.

    Args:
        shots: pictures of each class; numbers that a class does not have are left out, and told.
        num_draws: of these pictures, over which the mean is taken.
        l2_reg: penalty of the ridge regression.
        linear_probe: whether to fit the logistic regression, which takes longest.
        l2_regs: its penalties to choose from.
        features: ``pooled``, those of the image tower, or ``embedding``, after the projection, which needs two towers.
        during_fit: also at each validation while training.
        seed: of draws and divisions.

    Raises:
        ValueError: numbers that cannot be used, or nothing to do.
    """

    def __init__(
        self,
        shots: Sequence[int] = SHOTS,
        num_draws: int = 3,
        l2_reg: float = 2.0**10,
        linear_probe: bool = True,
        l2_regs: Sequence[float] = L2_REGS,
        features: Literal["pooled", "embedding"] = "pooled",
        during_fit: bool = False,
        seed: int = 0,
    ) -> None:
        if min([*shots, num_draws, l2_reg, *l2_regs, 1]) <= 0 or not (shots or linear_probe):
            raise ValueError(
                "Expected positive shots, num_draws, l2_reg and l2_regs, and something to fit; got shots "
                f"{list(shots)}, num_draws {num_draws}, l2_reg {l2_reg}, l2_regs {list(l2_regs)} and linear_probe "
                f"{linear_probe}."
            )
        if features not in ("pooled", "embedding"):
            raise ValueError(f"`features` must be pooled or embedding, got {features!r}.")
        self.shots, self.num_draws, self.l2_reg = list(shots), num_draws, l2_reg
        self.linear_probe, self.l2_regs = linear_probe, list(l2_regs)
        self.features, self.during_fit, self.seed = features, during_fit, seed
        self._found: dict[str, dict[str, MetricValue]] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a network or data that cannot be probed, before any picture is read.

        Raises:
            ValueError: the task has no network of ours, or no text tower for ``embedding``; data without classes, or
                with several labels a picture.
        """
        network: Any = getattr(pl_module, "network", None)
        needed = "encode_features" if self.features == "pooled" else "project_image"
        if not hasattr(network, needed):
            raise ValueError(
                f"Probes of {self.features} features need a network with `{needed}`, but {type(pl_module).__name__} "
                f"has {type(network).__name__}. Take two towers for `features: embedding`, or `features: pooled`."
            )
        data: Any = getattr(trainer, "datamodule", None)
        if stage != "predict" and (not getattr(data, "class_names", None) or data.example["label"].ndim != 1):
            raise ValueError(
                f"Probes need data with one label a picture, and {type(data).__name__} has no such. Take a data module "
                "with classes, or leave ProbeEvaluation out."
            )

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe the validation set, for `trainer.validate` and, if asked to, during training."""
        training = trainer.state.fn == "fit"
        if trainer.sanity_checking or (training and not self.during_fit):
            return
        data: Any = trainer.datamodule  # type: ignore[attr-defined]  # of Lightning's connector
        self._probe(trainer, pl_module, {"val": data.val_set}, 1 if training else 1000)

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Probe the test sets."""
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        self._probe(trainer, pl_module, data.test_sets, 1000)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the results beside the task's own."""
        if trainer.state.fn != "fit":
            self._hand_over(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the results beside the task's own."""
        self._hand_over(trainer, pl_module)

    def _hand_over(self, trainer: Trainer, module: LightningModule) -> None:
        evaluations: dict[str, Evaluation] = getattr(module, "evaluations", {})
        for name, metrics in self._found.items():
            evaluations.setdefault(name, Evaluation(name, {})).metrics.update(metrics)
        probed = {name: evaluations[name] for name, metrics in self._found.items() if metrics}
        if probed and trainer.is_global_zero:
            draw_probes(probed, figure_folder(trainer) / "probes.png")
        self._found = {}

    def _probe(self, trainer: Trainer, module: LightningModule, sets: dict[str, Any], num_resamples: int) -> None:
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        train = self._embed(trainer, module, data.plain_train_dataloader())
        seen = {name: self._embed(trainer, module, data.evaluation_dataloader(of_set)) for name, of_set in sets.items()}
        chooses = self.linear_probe and not any(of_set is data.val_set for of_set in sets.values())
        val = self._embed(trainer, module, data.evaluation_dataloader(data.val_set)) if chooses else None
        values = {}
        if train is not None:
            reported = {name: features for name, features in seen.items() if features is not None}
            classes = len(data.class_names)
            self._found = {name: {} for name in reported}
            self._few_shot(train, reported, classes, num_resamples)
            if self.linear_probe:
                self._linear(train, val, reported, classes, num_resamples, module.device)
            stage = "val" if "val" in sets else "test"
            values = {
                f"{stage}/{key}" if name == stage else f"{stage}/{name}/{key}": metric.value
                for name, metrics in self._found.items()
                for key, metric in metrics.items()
            }
        values = trainer.strategy.broadcast(values)
        module.log_dict(values, batch_size=1, sync_dist=True, reduce_fx="max")  # of equal values, to the bit

    def _embed(self, trainer: Trainer, module: LightningModule, loader: Any) -> Features | None:
        """Features ``[N, d]`` and labels ``[N]`` of a whole set, on the first process; every picture once."""
        collected = CollectedSet()
        network: Any = module.network
        for loaded in loader:
            batch = trainer.strategy.batch_to_device(trainer.precision_plugin.convert_input(loaded))
            with torch.no_grad(), trainer.precision_plugin.forward_context():
                stored = batch.get("image_embed")
                features = network.encode_features(batch["image"]) if stored is None else stored
                if self.features == "embedding":
                    features = network.project_image(features)
            kept: Any = {key: batch[key] for key in ("id", "label") if key in batch}
            collected.add(kept, features)
        whole = collected.gathered(None if trainer.world_size == 1 else dist.group.WORLD)
        return None if whole is None else (torch.cat(whole.logits), torch.cat(whole.labels))

    def _few_shot(self, train: Features, sets: dict[str, Features], classes: int, num_resamples: int) -> None:
        fewest = int(torch.bincount(train[1], minlength=classes).min())
        possible = [count for count in self.shots if count <= fewest]
        if len(possible) < len(self.shots):
            left_out = ", ".join(str(count) for count in self.shots if count > fewest)
            notice(f"No few-shot accuracy for {left_out} pictures a class: one class has only {fewest}.")
        for name, (features, labels) in sets.items():
            self._found[name] |= few_shot_accuracy(
                *train,
                features,
                labels,
                classes,
                shots=possible,
                num_draws=self.num_draws,
                l2_reg=self.l2_reg,
                num_resamples=num_resamples,
                seed=self.seed,
            )

    def _linear(
        self,
        train: Features,
        val: Features | None,
        sets: dict[str, Features],
        classes: int,
        num_resamples: int,
        device: torch.device,
    ) -> None:
        if val is None:
            rows, chosen = held_out_rows(len(train[1]), self.seed)
            train, val = (train[0][rows], train[1][rows]), (train[0][chosen], train[1][chosen])
        place = device if device.type == "cuda" else torch.device("cpu")  # others have no float64
        x, y, val_x, val_y = (part.to(place) for part in (*train, *val))
        probe = linear_probe(x, y, val_x, val_y, classes, self.l2_regs)
        if probe.l2_reg in (min(self.l2_regs), max(self.l2_regs)) and len(self.l2_regs) > 1:
            notice(
                f"The linear probe chose {probe.l2_reg:g} at the end of its penalties: a wider `l2_regs` may do better."
            )
        for name, (features, labels) in sets.items():
            self._found[name] |= probe.metrics(features.to(place), labels, num_resamples=num_resamples)
