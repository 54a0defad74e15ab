"""An alarm for embeddings that no longer tell things apart."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from siglightning.callbacks.logging_step import is_logging_step
from siglightning.callbacks.progress import total_steps

_SIDES = ("image", "text")
_WARM_UP = 0.1  # of the run, in which embeddings that begin alike may come apart


class CollapseAlarm(Callback):
    """Warns once, in one line, when the embeddings of pictures or captions collapse.

    It reads what a contrastive task logs of each batch, ``train/image_mean_cosine``, ``train/image_effective_rank`` and
    the same of ``text``. Embeddings are collapsed at a logged step when their mean cosine is above ``max_cosine`` or
    their effective rank below ``min_rank``, or when either is NaN, as of rows of zeros; the alarm goes off when they
    were so at ``patience`` logged steps in a row.
    Untrained towers may begin with embeddings that are nearly alike, so that steps count only after these were seen
    sound, or after a tenth of the run. A checkpoint holds how far it got, and that it has warned.

    The thresholds lie between what was measured on the embedded drawings in batches of 64 and 128: sound runs stayed
    below 0.984 and above 3.9 (captions pass through a narrow cone before they come apart); runs at 30 and 100 times the
    learning rate reached 0.9999 and 1.1. Captions made of two class names alone have a rank below 2.

    Args:
        max_cosine: of different rows of a batch, on average.
        min_rank: effective number of directions.
        patience: logged steps in a row.

    Raises:
        ValueError: a cosine that is none, a rank below 1, or no patience.
    """

    def __init__(self, max_cosine: float = 0.995, min_rank: float = 1.5, patience: int = 5) -> None:
        if not -1 <= max_cosine <= 1 or min_rank < 1 or patience < 1:
            raise ValueError(
                "Expected max_cosine from -1 to 1, min_rank and patience of at least 1, got "
                f"{max_cosine}, {min_rank} and {patience}. The defaults are 0.995, 1.5 and 5."
            )
        self.max_cosine, self.min_rank, self.patience = max_cosine, min_rank, patience
        self._in_a_row = dict.fromkeys(_SIDES, 0)
        self._was_sound = dict.fromkeys(_SIDES, False)
        self._has_warned = False
        self._logged_step = -1

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Nothing is logged yet."""
        self._logged_step = -1

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Look at what was logged in this step."""
        if self._has_warned or not is_logging_step(trainer, self._logged_step):
            return
        step = self._logged_step = trainer.global_step
        warmed_up = step >= _WARM_UP * (total_steps(trainer) or 0)
        complaints = {side: self._complaint(trainer, side) for side in _SIDES}
        for side, complaint in complaints.items():
            counts = complaint and (warmed_up or self._was_sound[side])
            self._in_a_row[side] = self._in_a_row[side] + 1 if counts else 0
            self._was_sound[side] |= complaint == ""
        if max(self._in_a_row.values()) >= self.patience:
            self._has_warned = True
            self._warn(step, [complaint for complaint in complaints.values() if complaint])

    def state_dict(self) -> dict[str, Any]:
        """How far it got."""
        return {"in_a_row": dict(self._in_a_row), "was_sound": dict(self._was_sound), "has_warned": self._has_warned}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from there."""
        self._in_a_row, self._was_sound = dict(state_dict["in_a_row"]), dict(state_dict["was_sound"])
        self._has_warned = bool(state_dict["has_warned"])

    def _complaint(self, trainer: Trainer, side: str) -> str | None:
        """What is wrong with one side; empty when nothing is, ``None`` when nothing was logged of it."""
        names = (f"train/{side}_mean_cosine", f"train/{side}_effective_rank")
        if not all(name in trainer.callback_metrics for name in names):
            return None
        cosine, rank = (float(trainer.callback_metrics[name]) for name in names)
        if cosine <= self.max_cosine and rank >= self.min_rank:  # so that NaN is not sound
            return ""
        return f"{side} embeddings have a mean cosine of {cosine:.3f} and an effective rank of {rank:.1f}"

    def _warn(self, step: int, complaints: list[str]) -> None:
        rank_zero_warn(
            f"Embeddings have collapsed by step {step}: {' and '.join(complaints)} (alarm above {self.max_cosine:g} or "
            f"below {self.min_rank:g}, {self.patience} logged steps in a row). Look at the learning rate and its "
            "warm-up first, then at t and b (train/logit_scale, train/logit_bias), then at the data: captions or "
            "pictures that are all alike."
        )
