"""Few-shot classification: a linear classifier by least squares on a few labelled features of each class.

The protocol of big_vision's ``fewshot_lsr`` evaluator, with which the SigLIP paper's 10-shot numbers were made (section
4.5, figure 4): features standardised by the few training rows, a constant feature of 100 in the place of a bias (so
that the penalty hardly touches it), targets of +1 and -1, and ridge regression with a penalty of 2**10.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import one_hot, pad

from siglightning.evaluation.bootstrap import MetricValue, mean_with_interval
from siglightning.evaluation.targets import require_finite, require_labelled
from siglightning.evaluation.zeroshot import zeroshot_ranks

_CONSTANT = 100.0  # of the feature that stands for a bias
_LEAST_STD = 1e-5  # is added to every standard deviation: a feature that never varies becomes 0
_TIE = 1e-9  # scores this close are ties: of features all alike those of the classes differ by rounding, up to 5e-14
SHOTS = (1, 5, 10, 25)


@dataclass(frozen=True)
class RidgeClassifier:
    """A linear classifier on standardised features.

    Attributes:
        mean: float64 ``[d]``.
        std: float64 ``[d]``.
        weight: float64 ``[d + 1, C]``; the last row belongs to the constant feature.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Scores float64 ``[N, C]`` of features ``[N, d]``, near +1 for the class and -1 for others."""
        return _standardised(features, self.mean, self.std) @ self.weight


def fit_ridge(features: Tensor, labels: Tensor, num_classes: int, l2_reg: float = 2.0**10) -> RidgeClassifier:
    """Least squares with a penalty: ``argmin_w |x w - y|^2 + l2_reg |w|^2``, in float64 on the CPU.

    Args:
        features: ``[N, d]``, of any real dtype.
        labels: int64 ``[N]`` in ``0 ... num_classes - 1``.
        num_classes: C, at least 2.
        l2_reg: the penalty, above 0.

    Returns:
        The classifier.

    Raises:
        ValueError: shapes, labels or penalty do not fit, or features are not finite.
    """
    _check(features, labels, num_classes, l2_reg)
    require_finite(features)
    x = features.detach().double().cpu()
    mean, std = x.mean(0), x.std(0, correction=0) + _LEAST_STD
    x = _standardised(x, mean, std)
    y = 2.0 * one_hot(labels.cpu(), num_classes).double() - 1.0
    # The smaller of two equal systems: x'(x x' + l)^-1 y = (x'x + l)^-1 x'y.
    weight = x.T @ _solve(x @ x.T, l2_reg, y) if len(x) < x.shape[1] else _solve(x.T @ x, l2_reg, x.T @ y)
    return RidgeClassifier(mean, std, weight)


def few_shot_accuracy(
    train_features: Tensor,
    train_labels: Tensor,
    test_features: Tensor,
    test_labels: Tensor,
    num_classes: int,
    *,
    shots: Sequence[int] = SHOTS,
    num_draws: int = 3,
    l2_reg: float = 2.0**10,
    num_resamples: int = 1000,
    seed: int = 0,
) -> dict[str, MetricValue]:
    """Test accuracy after so many pictures of each class, mean over draws of these pictures.

    A test picture counts with the share of draws that get it right, so that the bootstrap over pictures is one over
    independent samples. Different numbers of shots see nested draws. Ties and scores that are not numbers count against
    the classifier, as in :func:`zeroshot_ranks`.

    Args:
        train_features: ``[N, d]``, to draw from.
        train_labels: int64 ``[N]``.
        test_features: ``[M, d]``.
        test_labels: int64 ``[M]``.
        num_classes: C.
        shots: pictures a class.
        num_draws: of training pictures.
        l2_reg: see :func:`fit_ridge`.
        num_resamples: of the bootstrap.
        seed: of the draws.

    Returns:
        ``fewshot@1``, ``fewshot@5`` ... with chance 1 / C and 95 % intervals.

    Raises:
        ValueError: a class has too few pictures, shapes and labels do not fit, or training features are not finite.
    """
    _check(test_features, test_labels, num_classes, l2_reg)
    require_finite(train_features)  # all of them, lest the draw decide
    found = {}
    for count in shots:
        right = torch.zeros(len(test_labels), dtype=torch.float64)
        for draw in range(num_draws):
            rows = few_rows(train_labels, count, num_classes, seed=seed + draw)
            classifier = fit_ridge(train_features[rows], train_labels[rows], num_classes, l2_reg)
            right += zeroshot_ranks(classifier.logits(test_features), test_labels.cpu(), _TIE) == 1
        values = (right / num_draws)[:, None]
        found[f"fewshot@{count}"] = mean_with_interval(values, [1 / num_classes], num_resamples=num_resamples)[0]
    return found


def few_rows(labels: Tensor, shots: int, num_classes: int, *, seed: int = 0) -> Tensor:
    """So many rows of each class, at random.

    Args:
        labels: int64 ``[N]``.
        shots: rows a class; a larger number holds those of a smaller one.
        num_classes: C.
        seed: of the draw, which does not touch the global generator.

    Returns:
        int64 ``[C * shots]``.

    Raises:
        ValueError: a class has fewer.
    """
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))
    shuffled = labels.cpu()[order]
    of_class = [order[shuffled == number] for number in range(num_classes)]
    least = min(range(num_classes), key=lambda number: len(of_class[number]))
    if shots < 1 or len(of_class[least]) < shots:
        raise ValueError(
            f"Expected at least {max(shots, 1)} pictures of every class, got {len(of_class[least])} of class {least} "
            f"for {shots} shots. Ask for fewer shots, or leave such classes out."
        )
    return torch.cat([rows[:shots] for rows in of_class])


def _standardised(features: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    return pad((features.detach().double().cpu() - mean) / std, (0, 1), value=_CONSTANT)


def _solve(gram: Tensor, l2_reg: float, right: Tensor) -> Tensor:
    factor = torch.linalg.cholesky(gram + l2_reg * torch.eye(len(gram), dtype=torch.float64))
    return torch.cholesky_solve(right, factor)


def _check(features: Tensor, labels: Tensor, num_classes: int, l2_reg: float) -> None:
    require_labelled(features, labels, num_classes)
    if not l2_reg > 0:
        raise ValueError(f"Expected l2_reg above 0, got {l2_reg}: without it the system may have no solution.")
