"""What all tasks share: optimizer and schedule, norms, seeds, and the end of a run that is no longer finite."""

from collections.abc import Sequence
from typing import Any, Self

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.utilities import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.optim import Optimizer

from siglightning.batch import Batch, InputSpec
from siglightning.distributed.strategy import require_whole_parameters
from siglightning.models import ImageEncoder
from siglightning.optim import (
    GroupRule,
    Schedule,
    WeightDecayConvention,
    build_optimizer,
    build_scheduler,
    describe_groups,
    freeze,
    group_table,
    parameter_groups,
)
from siglightning.runtime.seeding import step_seed
from siglightning.tasks.finite import FiniteGuard, samples_to_blame
from siglightning.tasks.repeats import warn_of_untold_repeats

_REMEDIES = {
    "text": "Name the column of the captions, or take data with captions or with classes.",
    "label": "Take data with classes, or name the column of the labels.",
}


_FUSED = ("cpu", "cuda")  # devices whose fused AdamW leaves out steps as it should


def adamw(params: Any) -> Optimizer:
    """AdamW at 1e-3 with beta2 = .95, which the SigLIP paper (section 4.7) found to keep training stable.

    Fused where torch has such a kernel for all parameters: one for many of them at once, and a step whose gradients are
    not finite is left out on the device, see :class:`~siglightning.tasks.finite.FiniteGuard`.

    Args:
        params: parameters, or groups of them.
    """
    groups = list(params)
    every = [p for group in groups for p in (group["params"] if isinstance(group, dict) else [group])]
    fused = all(p.is_floating_point() and p.device.type in _FUSED for p in every)
    return torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.95), weight_decay=1e-4, fused=fused)


class _Shared:
    """A value that copies of a task have in common.

    Averaged weights are kept in a copy of the task, and what the command line makes of ``optimizer`` reaches its parser
    and open files, which cannot be copied.
    """

    def __init__(self, value: OptimizerCallable) -> None:
        self.value = value

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self


class BaseTask(LightningModule):
    """Training machinery without a word on what is learnt.

    A subclass sets ``input_spec``, implements the steps, and calls :meth:`log_train` with its loss.

    Args:
        optimizer: from parameter groups to an optimizer.
        schedule: the learning rate over the run, stepped with every optimizer step.
        rules: parameter groups, see :func:`siglightning.optim.parameter_groups`.
        scalar_lr_mult: factor on the learning rate of t' and b.
        seed: of every random number drawn on the device while training, together with the step.
        weight_decay_convention: how the optimizer's weight decay is meant: ``torch``, times the learning rate, or
            ``independent`` of it, as in the SigLIP paper; see :mod:`siglightning.optim`.
    """

    input_spec: InputSpec

    def __init__(
        self,
        optimizer: OptimizerCallable,
        schedule: Schedule,
        rules: Sequence[GroupRule],
        scalar_lr_mult: float,
        seed: int,
        weight_decay_convention: WeightDecayConvention = "torch",
    ) -> None:
        super().__init__()
        self._optimizer, self.schedule = _Shared(optimizer), schedule
        self.rules, self.scalar_lr_mult, self.seed = list(rules), scalar_lr_mult, seed
        self.weight_decay_convention = weight_decay_convention
        self._before_update: list[Tensor] | None = None
        self._guard = FiniteGuard()
        self._batch: Batch | None = None

    def setup(self, stage: str) -> None:
        """Apply the rules that freeze, before any strategy wraps the module.

        With precision ``64-true`` the weights become doubles here: Lightning does so only after it has restored a
        checkpoint, whose weights would be rounded to fp32 in between.
        """
        if stage == "fit":  # what a fit before left open, or counted, is not this one's
            self._guard, self._batch = FiniteGuard(), None
        freeze(self, self.rules)
        if isinstance(self.trainer.precision_plugin, DoublePrecision):
            self.double()

    def check_processes(self, trainer: Trainer) -> None:
        """Refuse what the processes of a training cannot do; the command line asks before they start.

        Raises:
            ValueError: a strategy that shares out parameters, or towers to compile and no compiler.
        """
        require_whole_parameters(trainer.strategy, trainer.world_size)
        network = getattr(self, "network", None)
        if isinstance(network, ImageEncoder):
            network.check_compile(trainer.strategy.root_device)

    def on_train_start(self) -> None:
        """Let the optimizer run as configured: of a checkpoint it has also taken with which kernels."""
        optimizer = self.optimizers(use_pl_optimizer=False)
        assert not isinstance(optimizer, list)  # configure_optimizers makes one
        _take_kernels_from_defaults(optimizer)

    def on_fit_start(self) -> None:
        """Compile the towers where that is asked for; it happens when they are called first."""
        network = getattr(self, "network", None)
        if isinstance(network, ImageEncoder):
            network.compile_for_training()

    def require_in_batch(self, *names: str) -> None:
        """Refuse data that lack what this task reads; called in :meth:`setup`, after the data module's own.

        Raises:
            ValueError: the data module tells its ``contents``, and a name is not among them.
        """
        data = getattr(self.trainer, "datamodule", None)
        contents: frozenset[str] | None = getattr(data, "contents", None)
        missing = [name for name in names if contents is not None and name not in contents]
        if missing and contents is not None:
            raise ValueError(
                f"{type(self).__name__} needs {' and '.join(missing)} in every batch, but {type(data).__name__} gives "
                f"only {', '.join(sorted(contents))}. {_REMEDIES.get(missing[0], '')}".rstrip()
            )

    @property
    def optimizer_factory(self) -> OptimizerCallable:
        """From parameter groups to an optimizer, as configured."""
        return self._optimizer.value

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """Build groups, optimizer and schedule; the table of groups is shown and logged."""
        parts = self.parts()
        optimizer = build_optimizer(
            self, self.optimizer_factory, self.rules, self.scalar_lr_mult, self.weight_decay_convention, parts
        )
        if self._is_scaled:
            # Fused ones offer to undo a gradient scaler's factor themselves, too late for the norm and for clipping.
            optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]  # what torch and Lightning ask
        groups = parameter_groups(self, self.rules, self.scalar_lr_mult, parts)
        rank_zero_info(describe_groups(groups, optimizer))
        for logger in self.loggers:
            logger.log_hyperparams({"parameter_groups": group_table(groups, optimizer)})
        scheduler = build_scheduler(optimizer, self.schedule, self.total_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    @property
    def _is_scaled(self) -> bool:
        """Whether a gradient scaler is at work (``16-mixed``)."""
        return getattr(self.trainer.precision_plugin, "scaler", None) is not None

    def parts(self) -> dict[str, str]:
        """What to call parameters in the table of groups, by name; those of other names are "default"."""
        return {}

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the whole run.

        Raises:
            ValueError: neither ``max_steps`` nor ``max_epochs`` with a data module that knows its length.
        """
        trainer = self.trainer
        by_epochs = None
        steps_per_epoch = getattr(getattr(trainer, "datamodule", None), "steps_per_epoch", None)
        if trainer.max_epochs is not None and trainer.max_epochs > 0 and steps_per_epoch is not None:
            by_epochs = trainer.max_epochs * -(-steps_per_epoch // trainer.accumulate_grad_batches)
        limits = [limit for limit in (trainer.max_steps, by_epochs) if limit is not None and limit > 0]
        if not limits:
            raise ValueError(
                f"The schedule needs the length of the run, got max_steps {trainer.max_steps} and max_epochs "
                f"{trainer.max_epochs}. Set `trainer.max_steps`."
            )
        return min(limits)

    def on_train_batch_start(self, batch: Batch, batch_idx: int) -> None:
        """Seed this step by (seed, step, rank): what is drawn does not depend on how often the run was resumed."""
        torch.manual_seed(step_seed(self.seed, self.global_step, self.global_rank))
        self._batch = batch

    def on_validation_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Warn of pictures that count more than once."""
        if batch_idx == 0:
            warn_of_untold_repeats(self.trainer, self.trainer.val_dataloaders, batch, dataloader_idx)

    def on_test_batch_start(self, batch: Batch, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Likewise."""
        if batch_idx == 0:
            warn_of_untold_repeats(self.trainer, self.trainer.test_dataloaders, batch, dataloader_idx)

    def finite_rows(self, batch: Batch) -> Tensor | None:
        """Whether each sample of a batch gives finite numbers, bool ``[B]``; ``None`` where the task cannot tell."""
        return None

    def configure_gradient_clipping(
        self, optimizer: Optimizer, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        """Leave the step out where its gradients are not finite, else clip them as the trainer says.

        Raises:
            NotFiniteError: see :meth:`FiniteGuard.lets_pass`.
        """
        if not self._guard.lets_pass(self, optimizer, self._batch, self._samples_to_blame):
            return
        # Under a gradient scaler Lightning clips; elsewhere it refuses fused optimizers, as if there were one.
        if not gradient_clip_val or self._is_scaled or self._guard.norm is None:
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
        elif gradient_clip_algorithm in (None, "norm"):
            nn.utils.clip_grads_with_norm_(_parameters(optimizer), gradient_clip_val, self._guard.norm)
        else:
            nn.utils.clip_grad_value_(_parameters(optimizer), gradient_clip_val)

    def on_train_end(self) -> None:
        """Take up what became of the last step."""
        self._guard.settle(self, self._samples_to_blame)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep how many steps were left out."""
        self._guard.settle(self, self._samples_to_blame)
        checkpoint["skipped_steps"] = self._guard.skipped

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on counting the steps that were left out."""
        self._guard.skipped = int(checkpoint.get("skipped_steps", 0))

    def _samples_to_blame(self, batch: Batch) -> list[Any]:
        modes = [(module, module.training) for module in self.modules()]
        self.eval()
        with torch.no_grad():
            finite = self.finite_rows(batch)
        for module, is_training in modes:
            module.training = is_training
        return [] if finite is None else samples_to_blame(batch, finite)

    def log_train(self, loss: Tensor, values: dict[str, Tensor]) -> None:
        """Log the training loss and what goes with it, at the trainer's logging interval; means over processes."""
        if not self.is_logging_step:
            return
        self._guard.settle(self, self._samples_to_blame)  # of the step before, which has been done by now
        loss = self.trainer.strategy.reduce(loss, reduce_op="mean")
        # Not for Lightning's bars: it would read what is meant for them at every step, and wait for the device.
        self.log("train/loss", loss, batch_size=1)
        self.log("train/skipped_steps", float(self._guard.skipped), batch_size=1)
        self.log_dict({f"train/{name}": value for name, value in values.items()}, batch_size=1, sync_dist=True)
        self.log("train/lr", self._peak_group_lr(), batch_size=1)

    @property
    def is_logging_step(self) -> bool:
        """Whether the step under way is one that the loggers see."""
        interval: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # its logger connector sets it
        return interval > 0 and (self.global_step + 1) % interval == 0

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Log the gradient norm before clipping, and remember the weights for the norm of the update."""
        if not self.is_logging_step:
            return
        parameters = [p for p in _parameters(optimizer) if p.grad is not None]
        gradients = [p.grad for p in parameters if p.grad is not None]
        self.log("train/grad_norm", nn.utils.get_total_norm(gradients), batch_size=1)
        self._before_update = [p.detach().clone() for p in parameters]
        self._updated = parameters

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Log the norms of the last update (SigLIP paper, Figure 5, bottom) and of the weights that it changed.

        An update is all that the optimizer did to the weights in the step, decay included. A second copy of the trained
        weights is held during a logged step, and only then.
        """
        self._batch = None
        if self._before_update is None:
            return
        changes, self._before_update = self._before_update, None
        weights = [parameter.detach() for parameter in self._updated]
        for change, after in zip(changes, weights, strict=True):
            change.sub_(after)  # in its place, and of the other sign: a third copy would be for the norm alone
        self.log("train/update_norm", nn.utils.get_total_norm(changes), batch_size=1)
        self.log("train/param_norm", nn.utils.get_total_norm(weights), batch_size=1)

    def _peak_group_lr(self) -> float:
        optimizer = self.optimizers()
        assert not isinstance(optimizer, list)  # configure_optimizers makes one
        return max(float(group["lr"]) for group in optimizer.param_groups)


def _parameters(optimizer: Optimizer) -> list[nn.Parameter]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _take_kernels_from_defaults(optimizer: Optimizer) -> None:
    """Let an optimizer that has read a state use the kernels that it was made with: ``fused``, ``foreach``.

    torch takes both from the state. Fused ones count their steps on the parameters' device, others on the host.
    """
    changed = [name for name in ("fused", "foreach") if name in optimizer.defaults]
    for group in optimizer.param_groups:
        if all(group[name] == optimizer.defaults[name] for name in changed):
            continue
        group.update({name: optimizer.defaults[name] for name in changed})
        for parameter in group["params"]:
            state = optimizer.state.get(parameter, {})
            if isinstance(state.get("step"), Tensor):
                on_device = group.get("fused") or group.get("capturable")
                state["step"] = state["step"].float().to(parameter.device if on_device else "cpu")
