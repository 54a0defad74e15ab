"""Which pictures train, validate and test: by concept and by style.

Concepts are divided by family, so that "man cook" and "cook" are never on two sides. Families that a test style draws
are divided 72 % train, 8 % validation, 20 % test. The others (most clip art) cannot be tested in an unseen style and
are divided 92 % train, 8 % validation. Flags are left out of evaluation: one that was never seen cannot be known.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from siglightning.data.draws import permutation
from siglightning.data.pictograms.archive import PictogramArchive

VAL_SHARE, TEST_SHARE = 0.08, 0.20
FLAGS = "Flags"

Rows = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Splits:
    """Rows of an archive's pictures, int64, ascending.

    Attributes:
        train: training concepts in the training styles.
        val: validation concepts in the training styles.
        seen_concepts: training concepts drawn in a test style.
        unseen_concepts: test concepts drawn in a test style.
    """

    train: Rows
    val: Rows
    seen_concepts: Rows
    unseen_concepts: Rows


def split(
    archive: PictogramArchive, train_styles: Sequence[str], test_styles: Sequence[str], seed: int, flags: bool
) -> Splits:
    """Divides an archive.

    Args:
        archive: what to divide.
        train_styles: styles to train and validate on.
        test_styles: styles to test on, none of the former.
        seed: of the division; independent of a run's seed, so that runs stay comparable.
        flags: whether flags are trained on.

    Raises:
        ValueError: a style is unknown, or on both sides.
    """
    style = np.asarray(archive.pictures["style"].to_pylist())
    _check_styles(set(style.tolist()), train_styles, test_styles)
    concept = archive.pictures["concept"].to_numpy()
    family = archive.concepts["family"].to_numpy()[concept]
    is_flag = np.asarray(archive.concepts["category"].to_pylist())[concept] == FLAGS
    in_train_style, in_test_style = np.isin(style, train_styles), np.isin(style, test_styles)

    testable = np.unique(family[in_test_style])
    val_families, test_families = _divide(testable, VAL_SHARE, TEST_SHARE, seed)
    other_val, _ = _divide(np.setdiff1d(family, testable), VAL_SHARE, 0.0, seed)
    in_val, in_test = np.isin(family, np.concatenate([val_families, other_val])), np.isin(family, test_families)
    in_train = ~in_val & ~in_test

    train = np.flatnonzero(in_train & in_train_style & (flags | ~is_flag))
    drawn_in_training = np.isin(concept, concept[train])
    return Splits(
        train=train,
        val=np.flatnonzero(in_val & in_train_style & ~is_flag),
        seen_concepts=np.flatnonzero(in_train & in_test_style & ~is_flag & drawn_in_training),
        unseen_concepts=np.flatnonzero(in_test & in_test_style & ~is_flag),
    )


def _divide(families: Rows, val_share: float, test_share: float, seed: int) -> tuple[Rows, Rows]:
    shuffled = families[permutation("split", seed, 0, len(families))]
    num_val, num_test = round(val_share * len(families)), round(test_share * len(families))
    return shuffled[:num_val], shuffled[num_val : num_val + num_test]


def _check_styles(known: set[str], train_styles: Sequence[str], test_styles: Sequence[str]) -> None:
    unknown = {*train_styles, *test_styles} - known
    if unknown:
        raise ValueError(f"`train_styles` and `test_styles` must be among {sorted(known)}, got {sorted(unknown)}.")
    both = set(train_styles) & set(test_styles)
    if both:
        raise ValueError(f"A test style must not be trained on, got {sorted(both)} in both. Remove it from one list.")
