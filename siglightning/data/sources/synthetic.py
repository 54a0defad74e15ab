"""Coloured shapes with a caption that says what is there, drawn on demand: as many as are wanted, and no files."""

import json
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from siglightning.data.draws import uniform
from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.source import RawSample, Source, digest
from siglightning.data.transforms import Augmentation

SHAPES = ("circle", "square", "triangle", "diamond", "ring", "cross")
COLOURS = {
    "red": (214, 40, 40),
    "orange": (255, 140, 0),
    "yellow": (250, 215, 50),
    "green": (40, 140, 60),
    "blue": (30, 80, 220),
    "purple": (140, 50, 200),
    "brown": (120, 75, 50),
    "black": (20, 20, 20),
}
RADII = {"small": 0.11, "large": 0.2}  # half a shape's extent, as a share of the picture's side
RELATIONS = ("left of", "right of", "above", "below")

_MARGIN = 0.02  # around a shape, as a share of the side
_PAPER = (225.0, 255.0)  # darkest and brightest background, of each colour by itself
_NAMES, _PAINTS = list(COLOURS), np.array(list(COLOURS.values()), dtype=np.float32)
_KINDS, _EXTENTS = list(RADII), list(RADII.values())
_DRAWS = 14  # numbers a sample
# Crops and turns that would cut off a shape, or mirrors and hues that would make the caption wrong, are left out.
_HARMLESS = Augmentation(crop=0.1, stretch=0.05, rotation=0, flip=0, hue=0, grayscale=0)


@dataclass(frozen=True)
class Shape:
    """One of a picture's two shapes.

    Attributes:
        kind: number of the shape.
        colour: number of the colour.
        size: number of the size.
        x: of the centre, as a share of the side, from the left.
        y: from the top.
    """

    kind: int
    colour: int
    size: int
    x: float
    y: float

    @property
    def words(self) -> str:
        """As it is said."""
        return f"a {_KINDS[self.size]} {_NAMES[self.colour]} {SHAPES[self.kind]}"


class SyntheticSource(Source):
    """Pictures of two shapes, each a function of (seed, part, index).

    The caption is such as "a small red circle left of a large blue square"; the label is the first shape's kind.

    Args:
        num_samples: how many; they take no memory.
        side: of the pictures, in pixels.
        seed: of all they show.
        part: samples of different parts have nothing in common; ``train``, ``val`` or ``test``.

    Raises:
        ValueError: no samples, or pictures too small to tell shapes apart.
    """

    class_names = SHAPES
    one_label = True

    def __init__(self, num_samples: int, side: int = 64, seed: int = 0, part: str = "train") -> None:
        if num_samples < 1 or side < 16:
            raise ValueError(f"Expected at least one sample and a side of at least 16, got {num_samples} and {side}.")
        self.num_samples, self.side, self.seed, self.part = num_samples, side, seed, part
        self._part = ("train", "val", "test").index(part)

    @override
    def __len__(self) -> int:
        return self.num_samples

    @override
    def key(self, index: int) -> str:
        return f"{self.part}/{index}"

    @override
    def read(self, index: int) -> RawSample:
        draws = uniform("synthetic", self.seed, self._part, np.array([index]), _DRAWS)[0]
        first, relation, second = _arrange(draws[:11])
        picture = np.empty((3, self.side, self.side), dtype=np.float32)
        picture[:] = (_PAPER[0] + draws[11:, None, None] * (_PAPER[1] - _PAPER[0])).astype(np.float32)
        _paint(picture, second)
        _paint(picture, first)
        caption = f"{first.words} {relation} {second.words}"
        return RawSample(torch.from_numpy(picture.round().astype(np.uint8)), [caption], [first.kind])

    @property
    @override
    def fingerprint(self) -> str:
        looks = [SHAPES, COLOURS, RADII, RELATIONS, _MARGIN, _PAPER]
        return digest([json.dumps([self.num_samples, self.side, self.seed, self.part, *looks]).encode()])


class SyntheticDataModule(MapStyleDataModule):
    """Coloured shapes with captions and labels, for smoke tests and benchmarks of the whole pipeline; no files.

    Args:
        num_samples: to train on.
        num_val_samples: to validate on.
        num_test_samples: to test on.
        side: of the pictures, in pixels.
        data_seed: of what the pictures show; leave it alone to compare runs.
        augmentation: how training pictures vary; ``None``: such that captions stay true.
        others: of :class:`MapStyleDataModule`.
    """

    def __init__(
        self,
        num_samples: int = 10_000,
        num_val_samples: int = 1_000,
        num_test_samples: int = 1_000,
        side: int = 64,
        data_seed: int = 0,
        augmentation: Augmentation | None = None,
        **others: Any,
    ) -> None:
        super().__init__(augmentation=augmentation or _HARMLESS, **others)
        self.counts = {"train": num_samples, "val": num_val_samples, "test": num_test_samples}
        self.side, self.data_seed = side, data_seed

    @override
    def open_parts(self) -> Parts:
        train, val, test = (
            SyntheticSource(count, self.side, self.data_seed, part) for part, count in self.counts.items()
        )
        return Parts(train, val, {"test": test})


def _arrange(draws: NDArray[np.float64]) -> tuple[Shape, str, Shape]:
    """Two shapes in two halves of the picture, and how the first lies to the second; from 11 numbers."""
    relation = RELATIONS[int(draws[0] * len(RELATIONS))]
    shapes = []
    for number, (kind, colour, size, along, across) in enumerate((draws[1:6], draws[6:11])):
        half = 0.0 if (number == 0) == (relation in ("left of", "above")) else 0.5
        reach = _EXTENTS[int(size * len(RADII))] + _MARGIN
        place = half + reach + along * (0.5 - 2 * reach), reach + across * (1 - 2 * reach)
        x, y = place if relation in ("left of", "right of") else place[::-1]
        shapes.append(Shape(int(kind * len(SHAPES)), int(colour * len(COLOURS)), int(size * len(RADII)), x, y))
    return shapes[0], relation, shapes[1]


def _paint(picture: NDArray[np.float32], shape: Shape) -> None:
    """Draw a shape into float ``[3, S, S]``, its edge smoothed over a pixel."""
    side = picture.shape[1]
    radius = _EXTENTS[shape.size] * side
    rows, columns = (_around(centre * side, radius + 1, side) for centre in (shape.y, shape.x))
    dy = ((np.arange(side)[rows] + 0.5 - shape.y * side) / radius)[:, None]
    dx = ((np.arange(side)[columns] + 0.5 - shape.x * side) / radius)[None, :]
    covered = np.clip(0.5 - _outside(SHAPES[shape.kind], dx, dy) * radius, 0, 1).astype(np.float32)
    region = picture[:, rows, columns]
    region += covered * (_PAINTS[shape.colour][:, None, None] - region)


def _around(centre: float, reach: float, side: int) -> slice:
    return slice(max(0, int(centre - reach)), min(side, int(centre + reach) + 1))


def _outside(kind: str, dx: NDArray[np.float64], dy: NDArray[np.float64]) -> NDArray[np.float64]:
    """About how far points lie outside a shape of radius 1, negative inside; dy points down."""
    across, down, distance = np.abs(dx), np.abs(dy), np.hypot(dx, dy)
    edges: dict[str, NDArray[np.float64]] = {
        "circle": distance - 1,
        "square": np.maximum(across, down) - 0.9,
        "triangle": np.maximum(dy - 0.8, (2 * across - dy - 1) / 5**0.5),
        "diamond": (across + down - 1) / 2**0.5,
        "ring": np.abs(distance - 0.75) - 0.25,
        "cross": np.minimum(np.maximum(across - 1, down - 0.3), np.maximum(across - 0.3, down - 1)),
    }
    return edges[kind]
