"""A page with one training picture of each class, drawn before training."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from siglightning.callbacks.cards import cut, draw_frame
from siglightning.callbacks.curves import GREY, INK
from siglightning.callbacks.figures import figure_folder
from siglightning.callbacks.grid import WRONG
from siglightning.callbacks.lettering import drawable, fonts
from siglightning.runtime.files import spared

_COLUMNS = 10
_SIDE, _TEXT, _GAP, _HEAD = 1.1, 0.4, 0.15, 0.45  # inches: as on pages of cards
_CHARACTERS = 19  # of a line
_MOST = 200  # classes on the page
_DPI = 150


class Example(Protocol):
    """What a data module tells of a class."""

    @property
    def name(self) -> str:
        """Of the class."""

    @property
    def count(self) -> int:
        """Its training pictures."""

    @property
    def image(self) -> Tensor | None:
        """uint8 ``[3, S, S]``, or ``None``."""


class ClassPictures(Callback):
    """Draws ``figures/classes.png`` before training: a picture of each class, its name and number of pictures.

    The data module's ``class_examples()`` gives them: those of the training set, not augmented. Data without classes,
    or with several a picture, get no page. Only the first process draws, at the run's first start.
    """

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the page, unless an earlier start has."""
        find = getattr(getattr(trainer, "datamodule", None), "class_examples", None)
        if find is None or not trainer.is_global_zero:
            return
        path = Path(trainer.default_root_dir) / "figures" / "classes.png"
        examples = None if path.exists() else find()
        if examples:
            with spared(path.name):
                draw_classes(examples, figure_folder(trainer) / path.name)


def draw_classes(examples: Sequence[Example], path: Path) -> None:
    """The page; classes beyond the two-hundredth are left out.

    Args:
        examples: at least one.
        path: the PNG file to write.
    """
    shown = examples[:_MOST]
    columns = min(_COLUMNS, len(shown))
    rows = -(-len(shown) // columns)
    width = max(4.5, columns * (_SIDE + _GAP) + _GAP)
    height = rows * (_SIDE + _TEXT + _GAP) + _HEAD
    figure = Figure(figsize=(width, height), dpi=_DPI, facecolor="white")
    left_out = f", the first {_MOST} of them" if len(examples) > _MOST else ""
    total = sum(example.count for example in examples)
    title = f"{len(examples)} classes{left_out}, {total:,} training pictures"
    figure.text(_GAP / width, 1 - 0.12 / height, title, fontsize=12, fontweight="bold", color=INK, va="top")
    for index, example in enumerate(shown):
        row, column = divmod(index, columns)
        left = _GAP + column * (_SIDE + _GAP)
        bottom = height - _HEAD - row * (_SIDE + _TEXT + _GAP) - _SIDE
        _draw(figure, example, left, bottom)
    figure.savefig(path)


def _draw(figure: Figure, example: Example, left: float, bottom: float) -> None:
    draw_frame(figure, example.image, (left, bottom, _SIDE), "#D0D0D0", 1.0)
    width, height = figure.get_size_inches()
    count = f"{example.count:,} picture{'' if example.count == 1 else 's'}" if example.count else "no pictures"
    lines = [
        (cut(example.name, _CHARACTERS), INK),
        (count, WRONG if example.image is None or not example.count else GREY),
    ]
    style: dict[str, Any] = {"fontfamily": list(fonts()), "parse_math": False, "va": "top", "fontsize": 7}
    for number, (text, colour) in enumerate(lines):
        y = bottom - 0.05 - 0.15 * number
        figure.text(left / width, y / height, drawable(text), color=colour, **style)
