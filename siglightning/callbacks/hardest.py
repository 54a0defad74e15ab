"""A page of the pictures that a contrastive model most firmly pairs with captions of others."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from siglightning.callbacks.cards import draw_frame
from siglightning.callbacks.curves import GREY, INK
from siglightning.callbacks.figures import figure_folder, file_word
from siglightning.callbacks.grid import RIGHT, WRONG
from siglightning.callbacks.lettering import drawable, fonts, one_line
from siglightning.evaluation import hardest_negatives
from siglightning.runtime.dashboard import step_of_loggers

_KEY = "✓ own caption    ✗ hardest caption of another"
_COLUMNS = 3
_LINE_CHARACTERS = 34
_CELL, _HEAD, _SIDE = (4.3, 1.55), 0.45, 1.3  # inches: a cell, the title, a picture
_DPI = 150


@dataclass(frozen=True)
class Confusion:
    """A picture between two captions.

    Attributes:
        image: uint8 ``[3, S, S]``, or ``None`` for data without pictures.
        own: its caption that the model finds nearest.
        own_logit: of the two.
        other: a caption of other pictures.
        other_logit: of the picture and that one.
        has_probability: whether the sigmoid of a logit is the probability of a match, as the sigmoid loss has it.
    """

    image: Tensor | None
    own: str
    own_logit: float
    other: str
    other_logit: float
    has_probability: bool = True

    def measure(self, logit: float) -> str:
        """A logit in words."""
        # of a large negative logit first: exp of it does not overflow
        probability = 1 / (1 + math.exp(-logit)) if logit > 0 else math.exp(logit) / (1 + math.exp(logit))
        return f"logit {logit:+.2f}" + (f", p(match) {probability:.3f}" if self.has_probability else "")

    @property
    def caption(self) -> str:
        """All of it but the picture."""
        own, other = (self.measure(logit) for logit in (self.own_logit, self.other_logit))
        return f"own: {self.own} ({own}); hardest other: {self.other} ({other})"


class HardestNegatives(Callback):
    """Draws ``figures/hardest_negatives_<set>.png`` after each validation, and of each test set.

    Of all pairs of a set's pictures and captions that do not match, by their match ids, it shows those with the highest
    logits, each picture once, beside the picture's own caption. They come from the embeddings that the task has made
    for its metrics, which are compared in blocks; only the pictures shown are read once more, by the data module's
    ``evaluated_pictures``. Pairs that look right are false negatives: the same thing twice under two ids.

    A validation replaces the page of the one before. Loggers that take images (W&B) get those of every validation, as
    ``val/hardest_negatives``, with captions and logits below. Only the first process draws.

    Args:
        num_pairs: on the page; 0 draws none.

    Raises:
        ValueError: a negative number.
    """

    def __init__(self, num_pairs: int = 12) -> None:
        if num_pairs < 0:
            raise ValueError(f"Expected num_pairs of at least 0, got {num_pairs}. Use 12, or 0 for no page.")
        self.num_pairs = num_pairs

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the validation set."""
        if not trainer.sanity_checking:
            self._draw(trainer, pl_module)

    def on_test_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw each test set."""
        self._draw(trainer, pl_module)

    def _draw(self, trainer: Trainer, module: LightningModule) -> None:
        if not trainer.is_global_zero or not self.num_pairs:
            return
        for name, embedded in getattr(module, "embedded", {}).items():
            confusions = find_confusions(trainer, module, name, embedded, self.num_pairs)
            if confusions:
                when = f" after step {trainer.global_step:,}" if trainer.state.fn == "fit" else ""
                title = f"{name}: hardest negatives{when}"
                draw_confusions(confusions, title, figure_folder(trainer) / f"hardest_negatives_{file_word(name)}.png")
                _send(trainer, f"{name}/hardest_negatives", confusions)


def find_confusions(
    trainer: Trainer, module: LightningModule, set_name: str, embedded: Any, count: int
) -> list[Confusion]:
    """The hardest negatives of a set.

    Args:
        trainer: with the data module.
        module: with the ``network``, its t', b and tokenizer.
        set_name: as the data module calls it.
        embedded: the set's embeddings, ids, tokens and what it tells of their rows, of a contrastive task.
        count: pairs.
    """
    network: Any = module.network
    images, texts = torch.cat(embedded.images), torch.cat(embedded.texts)
    found = hardest_negatives(images, texts, torch.cat(embedded.image_ids), torch.cat(embedded.text_ids), count)
    read = getattr(getattr(trainer, "datamodule", None), "evaluated_pictures", None)
    rows = embedded.embedded_rows([pair.image for pair in found])
    pictures = read(set_name, rows, embedded.shares) if read else [None] * len(found)
    tokens, scale = torch.cat(embedded.tokens), math.exp(network.log_scale.item())
    offset = 0.0 if network.bias is None else network.bias.item()
    return [
        Confusion(
            picture,
            network.tokenizer.decode(tokens[pair.own_text]),
            scale * pair.own_cosine + offset,
            network.tokenizer.decode(tokens[pair.text]),
            scale * pair.cosine + offset,
            network.bias is not None,
        )
        for pair, picture in zip(found, pictures, strict=True)
    ]


def draw_confusions(confusions: list[Confusion], title: str, path: Path) -> None:
    """The page.

    Args:
        confusions: at least one, hardest first.
        title: a line above.
        path: the PNG file to write.
    """
    rows = -(-len(confusions) // _COLUMNS)
    width, height = _COLUMNS * _CELL[0], rows * _CELL[1] + _HEAD
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    style: dict[str, Any] = {"fontfamily": list(fonts()), "parse_math": False, "va": "top"}
    top = 1 - 0.12 / height
    figure.text(0.15 / width, top, drawable(title), fontsize=12, fontweight="bold", color=INK, **style)
    figure.text(1 - 0.15 / width, top, _KEY, fontsize=9, color=GREY, ha="right", **style)
    for index, confusion in enumerate(confusions):
        row, column = divmod(index, _COLUMNS)
        left, upper = column * _CELL[0] + 0.15, height - _HEAD - row * _CELL[1]
        draw_frame(figure, confusion.image, (left, upper - _SIDE, _SIDE), "#D0D0D0", 1.0)
        for number, (mark, text, colour) in enumerate(_lines(confusion)):
            x, y = left + _SIDE + 0.12, (upper - 0.1 - 0.28 * number) / height
            figure.text(x / width, y, mark, fontsize=9, color=colour, **style)
            figure.text((x + 0.16) / width, y, text, fontsize=9, color=colour, **style)
    figure.savefig(path)


def _lines(confusion: Confusion) -> list[tuple[str, str, str]]:
    """Mark, text and colour."""
    return [
        ("✓", one_line(confusion.own, _LINE_CHARACTERS), RIGHT),
        ("", confusion.measure(confusion.own_logit), GREY),
        ("✗", one_line(confusion.other, _LINE_CHARACTERS), WRONG),
        ("", confusion.measure(confusion.other_logit), GREY),
    ]


def _send(trainer: Trainer, key: str, confusions: list[Confusion]) -> None:
    """To loggers that take images, as Lightning's for W&B does."""
    shown = [confusion for confusion in confusions if confusion.image is not None]
    images = [confusion.image.permute(1, 2, 0).numpy() for confusion in shown if confusion.image is not None]
    for logger in trainer.loggers:
        log_image: Any = getattr(logger, "log_image", None)
        if log_image is not None and images:
            log_image(key, images, step=step_of_loggers(trainer), caption=[confusion.caption for confusion in shown])
