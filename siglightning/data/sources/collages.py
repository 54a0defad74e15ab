"""Collages of embedded drawings: pictures that show several things, and a truth that is known exactly."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from typing_extensions import override

from siglightning.data.draws import permutation, uniform
from siglightning.data.map_style_module import MapStyleDataModule, Parts
from siglightning.data.pictograms.archive import PictogramArchive
from siglightning.data.pictograms.captions import category_words
from siglightning.data.source import RawSample, Source, digest
from siglightning.data.transforms import Augmentation, resize
from siglightning.evaluation.prompts import Templates

PARTS = ("train", "val", "test")
VAL_SHARE, TEST_SHARE = 0.15, 0.20  # of every class; 2 and 2 of twelve concepts
Labels = Literal["all", "one"]
HeldOut = Literal["concepts", "drawings"]
Rows = NDArray[np.int64]

_STYLES = ("noto", "twemoji", "fluent_color", "fluent_flat")  # clip art is not sorted into subcategories
_SMALLEST = 0.7  # a drawing's side, as a share of its cell's
_MOST = 9
_BLOCK = 2**14  # of rows whose labels are found at once
# Crops and turns that would cut a drawing off are left out; a mirror or another hue changes no class.
_HARMLESS = Augmentation(crop=0.1, stretch=0.1, rotation=0, flip=0.5)


@dataclass(frozen=True)
class Piece:
    """One drawing of a collage.

    Attributes:
        label: number of its class.
        row: of the drawing in the archive.
        x: of its left edge, in pixels.
        y: of its upper edge.
        side: of the drawing, in pixels.
    """

    label: int
    row: int
    x: int
    y: int
    side: int


class CollageSource(Source):
    """Collages on white, each a function of (seed, part, number).

    The drawings of one collage are of different classes, all classes equally often, and do not overlap: a single one
    has the picture for itself, two to four share its quarters, five to nine its ninths.

    Args:
        archive: where the drawings are.
        drawings: of each class, rows of the archive; int64.
        class_names: of the classes.
        num_samples: how many; they take no memory.
        part: collages of different parts have nothing in common; ``train``, ``val`` or ``test``.
        num_drawings: fewest and most in a collage.
        side: of the collages, in pixels.
        seed: of all they show.
        labels: ``all`` that are there, or ``one`` of them: the same one whenever the collage is read.

    Raises:
        ValueError: no samples, collages that are too small, or more drawings than classes or places.
    """

    def __init__(
        self,
        archive: PictogramArchive,
        drawings: Sequence[Rows],
        class_names: Sequence[str],
        num_samples: int,
        part: str = "train",
        num_drawings: tuple[int, int] = (1, 4),
        side: int = 128,
        seed: int = 0,
        labels: Labels = "all",
    ) -> None:
        fewest, most = num_drawings
        if not 1 <= fewest <= most <= min(_MOST, len(class_names)):
            raise ValueError(
                f"Expected 1 <= fewest <= most <= {min(_MOST, len(class_names))} drawings in a collage of "
                f"{len(class_names)} classes, got {fewest} and {most}."
            )
        if num_samples < 1 or side < 16:
            raise ValueError(f"Expected at least one collage and a side of at least 16, got {num_samples} and {side}.")
        if labels not in ("all", "one"):
            raise ValueError(f"Expected labels 'all' or 'one', got {labels!r}.")
        self.class_names, self.one_label = list(class_names), labels == "one"
        self.num_samples, self.part, self.num_drawings, self.side, self.seed = (
            *(num_samples, part, (fewest, most), side, seed),
        )
        self._archive, self._drawings = archive, list(drawings)

    @override
    def __len__(self) -> int:
        return self.num_samples

    @override
    def key(self, index: int) -> str:
        return f"{self.part}/{index}"

    def pieces(self, index: int) -> list[Piece]:
        """What a collage is made of. The first piece's class is the one that ``labels="one"`` tells."""
        classes, (fewest, most) = len(self.class_names), self.num_drawings
        draws = uniform("collage", self.seed, PARTS.index(self.part), np.array([index]), 1 + classes + 5 * _MOST)[0]
        count = fewest + int(draws[0] * (most - fewest + 1))
        labels = np.argsort(draws[1 : 1 + classes], kind="stable")[:count]
        more = draws[1 + classes :].reshape(5, _MOST)
        across = math.ceil(math.sqrt(count))
        places = np.argsort(more[4, : across**2], kind="stable")
        cell = self.side // across
        return [
            self._piece(int(label), int(place % across) * cell, int(place // across) * cell, cell, numbers)
            for label, place, numbers in zip(labels, places[:count], more[:4].T, strict=False)
        ]

    @property
    @override
    def row_labels(self) -> NDArray[np.int64] | None:
        if not self.one_label:
            return None
        number, draws = PARTS.index(self.part), 1 + len(self.class_names)
        blocks = (np.arange(first, min(first + _BLOCK, len(self))) for first in range(0, len(self), _BLOCK))
        # The first of `pieces` has the smallest of its draws.
        labels = [uniform("collage", self.seed, number, block, draws)[:, 1:].argmin(1) for block in blocks]
        return np.concatenate(labels).astype(np.int64)

    def _piece(self, label: int, left: int, top: int, cell: int, numbers: NDArray[np.float64]) -> Piece:
        rows = self._drawings[label]
        side = round(cell * (_SMALLEST + (1 - _SMALLEST) * numbers[0]))
        x, y = (int(numbers[axis] * (cell - side + 1)) for axis in (1, 2))
        return Piece(label, int(rows[int(numbers[3] * len(rows))]), left + x, top + y, side)

    @override
    def read(self, index: int) -> RawSample:
        pieces = self.pieces(index)
        picture = torch.full((3, self.side, self.side), 255, dtype=torch.uint8)
        for piece in pieces:
            drawing = resize([self._archive.read_image(piece.row)], piece.side)[0]
            picture[:, piece.y : piece.y + piece.side, piece.x : piece.x + piece.side] = drawing
        return RawSample(picture, labels=[piece.label for piece in (pieces[:1] if self.one_label else pieces)])

    @property
    @override
    def fingerprint(self) -> str:
        settings = [self.num_samples, self.part, self.num_drawings, self.side, self.seed, self.one_label, _SMALLEST]
        told = json.dumps([self._archive.fingerprint, self.class_names, *settings])
        return digest([told.encode(), *(rows.tobytes() for rows in self._drawings)])


class CollageDataModule(MapStyleDataModule):
    """Collages of 1 to 4 emoji of 52 subcategories ("animal mammal", "musical instrument"); no files.

    No drawing is in two of training, validation and test. With ``labels: one`` each picture tells one of its classes,
    as a set of single labels does; the same pictures with ``labels: all`` are what a model that learnt from it is
    measured on.

    Args:
        labels: ``all``: multi-hot; ``one``: a class index.
        num_samples: to train on.
        num_val_samples: to validate on.
        num_test_samples: to test on.
        min_drawings: fewest in a collage; 1 and 1 make a set of single drawings.
        max_drawings: most in a collage, at most 9.
        min_concepts: a subcategory is a class if it has so many concepts; 12 give 52 classes of 46 to 518 drawings.
        held_out: what validation and test have for themselves: ``concepts`` with their variants (a dog, in all
            styles), or only ``drawings``, so that the same dog in another style may have been trained on.
        side: of the collages, in pixels.
        data_seed: of what the collages show; leave it and ``split_seed`` alone to compare runs.
        augmentation: how training pictures vary; ``None``: such that labels stay true.
        templates: see :class:`MapStyleDataModule`.
        others: of :class:`MapStyleDataModule`.
    """

    def __init__(
        self,
        labels: Labels = "all",
        num_samples: int = 10_000,
        num_val_samples: int = 1_000,
        num_test_samples: int = 2_000,
        min_drawings: int = 1,
        max_drawings: int = 4,
        min_concepts: int = 12,
        held_out: HeldOut = "concepts",
        side: int = 128,
        data_seed: int = 0,
        augmentation: Augmentation | None = None,
        templates: Templates = ("an emoji of {}",),
        **others: Any,
    ) -> None:
        super().__init__(augmentation=augmentation or _HARMLESS, templates=templates, **others)
        self.labels: Labels = labels
        self.counts = dict(zip(PARTS, (num_samples, num_val_samples, num_test_samples), strict=True))
        self.num_drawings, self.min_concepts = (min_drawings, max_drawings), min_concepts
        self.held_out: HeldOut = held_out
        self.side, self.data_seed = side, data_seed

    @override
    def open_parts(self) -> Parts:
        archive = PictogramArchive.open()
        rows, names = divided(archive, self.min_concepts, self.held_out, self.split_seed)
        train, val, test = (
            CollageSource(
                *(archive, rows[part], names, count, part, self.num_drawings, self.side, self.data_seed, self.labels)
            )
            for part, count in self.counts.items()
        )
        return Parts(train, val, {"test": test})


def divided(
    archive: PictogramArchive, min_concepts: int, held_out: HeldOut = "concepts", seed: int = 0
) -> tuple[Mapping[str, list[Rows]], list[str]]:
    """Emoji by subcategory, shared out among training, validation and test.

    Args:
        archive: what to divide.
        min_concepts: a subcategory is a class if it has so many concepts, variants counted once.
        held_out: what no two parts share, see :class:`CollageDataModule`.
        seed: of the division.

    Returns:
        For each of ``PARTS`` the rows of every class, and the names of the classes, sorted.

    Raises:
        ValueError: fewer than two classes are left, or an unknown ``held_out``.
    """
    if held_out not in ("concepts", "drawings"):
        raise ValueError(f"`data.init_args.held_out` must be concepts or drawings, got {held_out!r}.")
    concept = archive.pictures["concept"].to_numpy()
    kinds, kind_of_concept = np.unique(archive.concepts["subcategory"].to_pylist(), return_inverse=True)
    kind, family = kind_of_concept[concept], archive.concepts["family"].to_numpy()[concept]
    usable = np.isin(archive.pictures["style"].to_pylist(), _STYLES) & (kinds[kind] != "")
    sizes = [len(np.unique(family[usable & (kind == number)])) for number in range(len(kinds))]
    classes = [number for number, size in enumerate(sizes) if size >= max(3, min_concepts)]
    if len(classes) < 2:
        raise ValueError(
            f"Expected at least 2 subcategories of {min_concepts} concepts, found {len(classes)}; the largest has "
            f"{max(sizes)}. Lower `data.init_args.min_concepts`."
        )
    units = family if held_out == "concepts" else np.arange(len(concept))
    part = _parts(units, kind, np.flatnonzero(usable & np.isin(kind, classes)), seed)
    rows = {name: [np.flatnonzero((part == n) & (kind == k)) for k in classes] for n, name in enumerate(PARTS)}
    return rows, [category_words(str(kinds[number])) for number in classes]


def _parts(units: Rows, kind: Rows, usable: Rows, seed: int) -> NDArray[np.int64]:
    """The part of each row, -1 for none: of every class the same shares of units, none of them in two parts."""
    found, first = np.unique(units[usable], return_index=True)
    home = kind[usable][first]  # a family in two classes is counted in one, and stays whole
    order = permutation("split", seed, 0, len(found))
    part_of = np.zeros(len(found), dtype=np.int64)
    for number in np.unique(home):
        own = order[home[order] == number]
        val, test = (max(1, round(share * len(own))) for share in (VAL_SHARE, TEST_SHARE))
        part_of[own[:val]], part_of[own[val : val + test]] = 1, 2
    part = np.full(len(units), -1, dtype=np.int64)
    part[usable] = part_of[np.searchsorted(found, units[usable])]
    return part
