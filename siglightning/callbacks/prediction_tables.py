"""Tables of single predictions, with their pictures, for loggers that take tables."""

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from siglightning.callbacks.cards import cards_of
from siglightning.callbacks.label_cards import ranked_labels
from siglightning.callbacks.logged_table import log_table
from siglightning.evaluation import Predictions
from siglightning.evaluation.classification import worst_mistakes
from siglightning.evaluation.label_scores import LabelScores

ONE_LABEL = ("picture", "id", "label", "prediction", "probability", "right")
SEVERAL_LABELS = ("picture", "id", "labels", "given out", "best label", "probability")


class PredictionTables(Callback):
    """Hands ``<set>/predictions`` to loggers that take tables (W&B), after a validation by itself and after a test.

    Half of the rows are drawn at random, the others are the worst mistakes whose pictures were kept. Pictures with
    several labels have a row with the true ones and those given out. The files that `predict` writes hold every
    picture; these tables are for looking.

    Args:
        num_rows: in each table; 0 makes none.

    Raises:
        ValueError: a negative number.
    """

    def __init__(self, num_rows: int = 48) -> None:
        if num_rows < 0:
            raise ValueError(f"Expected num_rows of at least 0, got {num_rows}. Use 48, or 0 for no table.")
        self.num_rows = num_rows

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send what `trainer.validate` found."""
        if trainer.state.fn == "validate":
            self._send(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Send each test set."""
        self._send(trainer, pl_module)

    def _send(self, trainer: Trainer, module: LightningModule) -> None:
        takes = any(hasattr(logger, "log_table") for logger in trainer.loggers)
        if not trainer.is_global_zero or not takes:
            return
        found: dict[str, Predictions] = getattr(module, "predictions", {})
        scores_of: Callable[[Predictions], LabelScores] | None = getattr(module, "label_scores", None)
        for name, predictions in found.items():
            several = predictions.labels is not None and predictions.labels.ndim == 2
            if several and scores_of is not None:
                rows = _rows_of_several(predictions, scores_of(predictions), self.num_rows)
            else:
                rows = [] if several else _rows_of_one(predictions, self.num_rows)
            if rows:
                log_table(trainer, f"{name}/predictions", SEVERAL_LABELS if several else ONE_LABEL, rows)


def _rows_of_one(predictions: Predictions, count: int) -> list[list[Any]]:
    chosen = predictions.drawn_rows(count if predictions.labels is None else -(-count // 2))
    if predictions.labels is not None:
        worst = worst_mistakes(predictions, len(predictions.ids))
        chosen += [row for row in worst if row in predictions.picture_of and row not in chosen][: count - len(chosen)]
    cards = cards_of(predictions, chosen)
    return [
        [card.image, predictions.ids[row], card.truth, card.prediction, card.score, card.is_right]
        for row, card in zip(chosen, cards, strict=True)
    ]


def _rows_of_several(predictions: Predictions, scores: LabelScores, count: int) -> list[list[Any]]:
    rows = []
    for row in predictions.drawn_rows(count):
        labels, missed = ranked_labels(scores, row, len(scores.class_names))
        true = [label.name for label in labels if label.is_true] + missed
        given = [label.name for label in labels if label.passed]
        best = labels[0]
        rows.append(
            [
                predictions.picture_of[row],
                predictions.ids[row],
                ", ".join(true),
                ", ".join(given),
                best.name,
                best.score,
            ]
        )
    return rows
