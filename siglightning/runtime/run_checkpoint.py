"""The checkpoints from which a run resumes."""

import math
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from siglightning.runtime.checkpoint import SUFFIX
from siglightning.runtime.exits import NotFiniteError
from siglightning.runtime.graceful_stop import stop_is_agreed

_OF_TRAINING = ("optimizer_states", "lr_schedulers", "callbacks", "loops", "current_model_state", "averaging_state")
MAX_FAILURES = 3  # saves in a row that may fail before the run stops


class NotSavedError(OSError):
    """The state of a run could not be saved, and training on would be in vain.

    Args:
        what: which state, or how often.
        cause: what the operating system said.
    """

    def __init__(self, what: str, cause: OSError) -> None:
        super().__init__(f"The state of the run could not be saved, {what}: {cause}")


class RunCheckpoint(Checkpoint):
    """Keep the newest states of a run in ``checkpoints/`` of its run directory.

    Saves every ``every_n_steps`` optimizer steps, after each validation and at the end. Each file is named after
    its step and holds everything that resuming needs; older ones are deleted. A step that ends in a validation is
    saved after it, so that a resumed run neither repeats nor skips it.

    Where the task names a metric as its ``monitor``, the weights of the validation with the highest value, the first
    of equals, are kept as ``best-STEP.ckpt``. Lightning's ``ModelCheckpoint`` writes such a file after the state of
    the run, which then does not know of it: a run that goes on from there would forget its best.

    A save that fails (disk full) leaves the earlier files intact, is warned of, and does not stop training until
    the third in a row. The last one must succeed: it is tried once more when training ends.

    Args:
        every_n_steps: optimizer steps between two saves; 0: only after validations and at the end.
        keep_last: number of files to keep.
        keep_every: beside these, keep every file whose step is a multiple of this; 0: none.

    Raises:
        ValueError: a number is out of range.
    """

    def __init__(self, every_n_steps: int = 500, keep_last: int = 2, keep_every: int = 0) -> None:
        super().__init__()
        if every_n_steps < 0 or keep_last < 1 or keep_every < 0:
            raise ValueError(
                "RunCheckpoint expects every_n_steps >= 0, keep_last >= 1 and keep_every >= 0, "
                f"got every_n_steps={every_n_steps}, keep_last={keep_last} and keep_every={keep_every}."
            )
        if keep_every and every_n_steps and keep_every % every_n_steps:
            raise ValueError(
                f"RunCheckpoint expects keep_every to be a multiple of every_n_steps, got {keep_every} and "
                f"{every_n_steps}: files that are not written cannot be kept."
            )
        self.every_n_steps = every_n_steps
        self.keep_last, self.keep_every = keep_last, keep_every
        self._last_step: int | None = None
        self._failures = 0
        self._error: OSError | None = None  # of the newest save
        self._best: tuple[float, int] | None = None  # value and step

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Save when a save is due and no validation follows."""
        if not self._is_due(trainer) or self._validation_follows(trainer):
            return
        self._save(trainer)

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the state of a step together with its validation, and its weights if they are the best."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._keep_best(trainer, getattr(pl_module, "monitor", None))
            self._save(trainer)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Value and step of the best validation so far."""
        return {"best": None if self._best is None else list(self._best)}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on with the best of the run so far."""
        best = state_dict.get("best")
        self._best = None if best is None else (float(best[0]), int(best[1]))

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Save the last step, unless that was done when it ended.

        Raises:
            NotSavedError: the disk does not take it; a run without its last state is not done.
        """
        if not self._save(trainer) and self._error is not None:
            raise NotSavedError(f"that of step {trainer.global_step}, the last one", self._error)

    def _is_due(self, trainer: Trainer) -> bool:
        """Whether this step is a multiple, the last one, or the one after which a signal stops the run.

        The last step is saved here rather than at the end of training: the loops' counters then stand where a
        longer run would have had them, so raising ``max_steps`` continues exactly.
        """
        step = trainer.global_step
        last_epoch = trainer.max_epochs not in (None, -1) and trainer.current_epoch + 1 >= (trainer.max_epochs or 0)
        is_last = step == trainer.max_steps or trainer.should_stop or (trainer.is_last_batch and last_epoch)
        return is_last or stop_is_agreed(trainer) or (self.every_n_steps > 0 and step % self.every_n_steps == 0)

    @staticmethod
    def _validation_follows(trainer: Trainer) -> bool:
        loop = trainer.fit_loop
        # Lightning has no public way to ask; the resume tests fail when these names go.
        return bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))  # type: ignore[arg-type]  # set while training

    def _save(self, trainer: Trainer) -> bool:
        """Save the state of this step; whether it is saved, now or before."""
        step = trainer.global_step
        if step != self._last_step and self._write(trainer, "step", self.keep_last, weights_only=False):
            self._last_step = step
        return step == self._last_step

    def _keep_best(self, trainer: Trainer, monitor: str | None) -> None:
        if monitor is None or monitor not in trainer.callback_metrics:
            return
        value, before = float(trainer.callback_metrics[monitor]), self._best
        if value > (-math.inf if before is None else before[0]):
            self._best = value, trainer.global_step
            if not self._write(trainer, "best", 1, weights_only=True):
                self._best = before

    def _write(self, trainer: Trainer, kind: str, keep: int, *, weights_only: bool) -> bool:
        """Save ``kind-STEP.ckpt``, then delete all but the newest ``keep`` of the kind; whether it was saved."""
        step = trainer.global_step
        if step == 0 or getattr(trainer, "fast_dev_run", False):
            return False
        directory, name = Path(trainer.default_root_dir) / "checkpoints", f"{kind}-{step:08d}{SUFFIX}"
        _require_finite(trainer.lightning_module, step)
        self._error = self._try(trainer, directory / name, weights_only=weights_only)
        if self._error is not None:
            self._failures += 1
            if self._failures >= MAX_FAILURES:
                raise NotSavedError(f"{self._failures} times in a row, the last at step {step}", self._error)
            rank_zero_warn(f"The checkpoint of step {step} was not saved: {self._error}. Earlier ones are intact.")
            return False
        self._failures = 0
        if trainer.is_global_zero:
            # Those of later steps are damaged, or the run would not have gone on from before them: none to keep by.
            present = [path for path in sorted(directory.glob(f"{kind}-*{SUFFIX}")) if path.name <= name]
            for path in present[:-keep]:
                if not (self.keep_every and kind == "step" and int(path.stem.partition("-")[2]) % self.keep_every == 0):
                    trainer.strategy.remove_checkpoint(path)
        return True

    @staticmethod
    def _try(trainer: Trainer, path: Path, *, weights_only: bool) -> OSError | None:
        """Save to ``path``; all processes get an error where the disk does not take it, and wait until it is known."""
        checkpoint = trainer._checkpoint_connector.dump_checkpoint(weights_only=False)
        if weights_only:  # Lightning's own way asks no callback, and one of them may have averaged the weights
            checkpoint = {key: value for key, value in checkpoint.items() if key not in _OF_TRAINING}
        failed: OSError | None = None
        try:
            trainer.strategy.save_checkpoint(checkpoint, path)
        except OSError as error:
            failed = error
        if trainer.strategy.reduce_boolean_decision(failed is None):
            return None
        return failed or OSError("the first process could not write it")


def _require_finite(module: LightningModule, step: int) -> None:
    """Refuse to save what could never be resumed: the newest checkpoint must be a sound one.

    Raises:
        NotFiniteError: a parameter is NaN or infinite.
    """
    for name, parameter in module.named_parameters():
        if not bool(parameter.isfinite().all()):
            raise NotFiniteError(
                f"The parameter {name} is not finite at step {step}; nothing was saved, and the last checkpoint is "
                "from before. Lower the learning rate, lengthen the warm-up or clip gradients."
            )
