"""Pictures of what a classifier gets right and wrong, after a validation or a test."""

import shutil
from collections.abc import Callable
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer

from siglightning.callbacks.cards import Card, cards_of, draw_card, draw_cards
from siglightning.callbacks.confusion import draw_confusion
from siglightning.callbacks.figures import figure_folder, file_word
from siglightning.callbacks.grid import draw_retrieval_grid
from siglightning.callbacks.label_cards import draw_label_card, ranked_labels
from siglightning.callbacks.model_record import model_name
from siglightning.evaluation import Predictions
from siglightning.evaluation.classification import (
    accuracy,
    confusion_matrix,
    majority_share,
    ranked_examples,
    worst_mistakes,
)
from siglightning.evaluation.label_scores import LabelScores

_RANKED = 12
_LABELS = 6  # on a card


class SampleWriter(Callback):
    """Draws what a task says of its evaluation sets, when it keeps ``predictions``.

    In ``samples/<model>`` of the run directory: one annotated picture a file in a folder for each set, and all of them
    on a page, ``<set>.png``; predictions are green when right and red when wrong. In ``figures``: the confusion matrix,
    the worst mistakes, and twelve pictures with their five best classes, ``ranked_<set>.png`` (the zero-shot grid,
    where the classes are prompts). Sets without labels have no matrix and no mistakes. Validation within training
    draws nothing. Only the first process draws.

    Pictures with several labels get cards with ranked labels instead, one a file, where the task has ``label_scores``;
    no figures.

    Args:
        num_samples: annotated pictures a set.
        num_mistakes: on the page of the worst ones.

    Raises:
        ValueError: a negative number.
    """

    def __init__(self, num_samples: int = 12, num_mistakes: int = 24) -> None:
        if min(num_samples, num_mistakes) < 0:
            raise ValueError(
                f"Expected num_samples and num_mistakes of at least 0, got {num_samples} and {num_mistakes}."
            )
        self.num_samples, self.num_mistakes = num_samples, num_mistakes

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw what `trainer.validate` found."""
        if trainer.state.fn == "validate":
            self._draw(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw each test set."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, module: LightningModule) -> None:
        found: dict[str, Predictions] = getattr(module, "predictions", {})
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "samples" / model_name(module)
        for name, predictions in found.items():
            if predictions.labels is not None and predictions.labels.ndim == 2:
                scores_of: Callable[[Predictions], LabelScores] | None = getattr(module, "label_scores", None)
                if scores_of is not None:
                    self._draw_label_cards(name, predictions, scores_of(predictions), folder)
            else:
                self._draw_samples(name, predictions, folder)
                if predictions.labels is not None and len(predictions.ids):
                    self._draw_figures(name, predictions, figure_folder(trainer))

    def _draw_samples(self, name: str, predictions: Predictions, folder: Path) -> None:
        """Pictures drawn at random, so that they are neither the best nor the worst."""
        cards = cards_of(predictions, predictions.drawn_rows(self.num_samples))
        if not cards:
            return
        own = _emptied(folder / file_word(name))
        for number, card in enumerate(cards, start=1):
            draw_card(card, own / f"{number:02}_{_verdict(card)}.png")
        draw_cards(cards, f"{name}: pictures drawn at random", folder / f"{file_word(name)}.png")

    def _draw_label_cards(self, name: str, predictions: Predictions, scores: LabelScores, folder: Path) -> None:
        own = _emptied(folder / file_word(name))
        for number, row in enumerate(predictions.drawn_rows(self.num_samples), start=1):
            labels, missed = ranked_labels(scores, row, _LABELS)
            draw_label_card(predictions.picture_of[row], predictions.ids[row], labels, missed, own / f"{number:02}.png")

    def _draw_figures(self, name: str, predictions: Predictions, folder: Path) -> None:
        set_name = file_word(name)
        share, majority = accuracy(predictions), majority_share(predictions)
        title = f"{name}: accuracy {share:.1%}, majority class {majority:.1%}"
        draw_confusion(
            confusion_matrix(predictions), predictions.class_names, title, folder / f"confusion_{set_name}.png"
        )
        rows = [row for row in worst_mistakes(predictions, len(predictions.ids)) if row in predictions.picture_of]
        if rows[: self.num_mistakes]:
            cards = cards_of(predictions, rows[: self.num_mistakes])
            draw_cards(cards, f"{name}: the worst mistakes", folder / f"worst_mistakes_{set_name}.png")
        examples = ranked_examples(predictions, _RANKED)
        if examples:
            title = f"{name}: pictures and their five best classes"
            draw_retrieval_grid(examples, title, folder / f"ranked_{set_name}.png")


def _emptied(folder: Path) -> Path:
    """A folder without what an earlier test left."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _verdict(card: Card) -> str:
    """``right_cat``, ``wrong_cat`` (the true class), or ``cat``."""
    if card.truth is None:
        return file_word(card.prediction)
    return f"{'right' if card.is_right else 'wrong'}_{file_word(card.truth)}"
