"""Pictures beside the report: what a model would see, and pairs that look alike."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from torch import Tensor

_LETTERS, _LINES = 60, 5  # of what stands beside a picture


def sample_page(stem: Path, images: Tensor, lines: Sequence[str]) -> Path:
    """Pictures uint8 ``[n, 3, S, S]``, each with its line; returns the file, ``STEM-samples.png``."""
    rows = [((image,), line) for image, line in zip(images, lines, strict=True)]
    return _draw(rows, stem.with_name(f"{stem.name}-samples.png"))


def pair_page(stem: Path, pairs: Sequence[tuple[Tensor, Tensor, str]]) -> Path:
    """Pairs of pictures uint8 ``[3, S, S]`` and what they are; returns the file, ``STEM-duplicates.png``."""
    rows = [((one, other), line) for one, other, line in pairs]
    return _draw(rows, stem.with_name(f"{stem.name}-duplicates.png"))


def _draw(rows: Sequence[tuple[Sequence[Tensor], str]], path: Path) -> Path:
    """A row of pictures for each line, which stands at their right."""
    columns = len(rows[0][0])
    figure = Figure(figsize=(5 + 1.4 * columns, 1.4 * len(rows)), layout="constrained")
    grid = figure.add_gridspec(len(rows), columns + 1, width_ratios=[1.4] * columns + [5])
    for row, (images, line) in enumerate(rows):
        for column, image in enumerate(images):
            axis = figure.add_subplot(grid[row, column])
            axis.imshow(image.permute(1, 2, 0).numpy())
            axis.axis("off")
        words = figure.add_subplot(grid[row, columns])
        words.axis("off")
        words.text(0, 0.5, "\n".join(textwrap.wrap(line, _LETTERS)[:_LINES]), va="center", fontsize=9, parse_math=False)
    FigureCanvasAgg(figure).print_png(str(path))
    return path
