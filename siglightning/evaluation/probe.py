"""Linear probe: logistic regression on the features of a frozen network, its penalty chosen on other pictures.

torch's L-BFGS in float64 minimises it, where scikit-learn would do the same on the CPU alone: on the features of
ImageNet, 1.3 million by 768, the device on which they were made is the difference between minutes and hours, and no
further package is needed. The tests compare it with scikit-learn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from siglightning.evaluation.bootstrap import MetricValue, mean_with_interval
from siglightning.evaluation.targets import require_finite, require_labelled
from siglightning.evaluation.zeroshot import zeroshot_ranks

L2_REGS = tuple(10.0**exponent for exponent in range(-6, 3))
_LEAST_STD = 1e-5  # is added to every standard deviation: a feature that never varies becomes 0


@dataclass(frozen=True)
class LogisticClassifier:
    """A linear classifier on standardised features.

    Attributes:
        mean: float64 ``[d]``.
        std: float64 ``[d]``.
        weight: float64 ``[d, C]``.
        bias: float64 ``[C]``.
    """

    mean: Tensor
    std: Tensor
    weight: Tensor
    bias: Tensor

    def logits(self, features: Tensor) -> Tensor:
        """Scores float64 ``[N, C]`` of features ``[N, d]``; their softmax are probabilities."""
        return ((features.to(self.mean) - self.mean) / self.std) @ self.weight + self.bias


@dataclass(frozen=True)
class LinearProbe:
    """A classifier, and how its penalty was found.

    Attributes:
        classifier: fitted with the chosen penalty.
        l2_reg: the penalty.
        accuracies: of each penalty on the pictures that chose, in [0, 1].
    """

    classifier: LogisticClassifier
    l2_reg: float
    accuracies: Mapping[float, float]

    def metrics(
        self, features: Tensor, labels: Tensor, *, num_resamples: int = 1000, seed: int = 0
    ) -> dict[str, MetricValue]:
        """``probe_acc`` and, with more than five classes, ``probe_acc@5``, with chance and 95 % bootstrap intervals.

        Ties and scores that are not numbers count against the probe, as in :func:`zeroshot_ranks`.

        Args:
            features: ``[N, d]`` of pictures that neither trained nor chose.
            labels: int64 ``[N]``.
            num_resamples: of the bootstrap over pictures.
            seed: of the draws.

        Raises:
            ValueError: a label without a class.
        """
        logits, classes = self.classifier.logits(features).cpu(), len(self.classifier.bias)
        cutoffs = {"probe_acc": 1} | ({"probe_acc@5": 5} if classes > 5 else {})
        ranks = zeroshot_ranks(logits, labels.cpu())
        hits = torch.stack([ranks <= k for k in cutoffs.values()], dim=1)
        chances = [k / classes for k in cutoffs.values()]
        values = mean_with_interval(hits, chances, num_resamples=num_resamples, seed=seed)
        return dict(zip(cutoffs, values, strict=True))


def fit_logistic(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    l2_reg: float,
    *,
    start: LogisticClassifier | None = None,
    max_iterations: int = 1000,
    tolerance: float = 1e-7,
) -> LogisticClassifier:
    """Minimise ``mean_i -log softmax(x_i w + b)[y_i] + l2_reg / 2 |w|^2`` over standardised features, in float64.

    The objective has one minimum, and the bias is not penalised: scikit-learn's ``LogisticRegression`` with
    ``C = 1 / (l2_reg N)``.

    Args:
        features: ``[N, d]``; the fit is made where they are.
        labels: int64 ``[N]`` in ``0 ... num_classes - 1``.
        num_classes: C, at least 2.
        l2_reg: the penalty, above 0.
        start: weights to begin with, of the same features; those of a near penalty save most steps.
        max_iterations: steps of L-BFGS.
        tolerance: the largest part of the gradient at which it stops.

    Raises:
        ValueError: shapes, labels or penalty do not fit, or features are not finite.
    """
    require_labelled(features, labels, num_classes)
    require_finite(features)
    if not l2_reg > 0:
        raise ValueError(f"The penalty l2_reg must be above 0, got {l2_reg}. Use for instance 1e-3.")
    with torch.inference_mode(False), torch.enable_grad():  # evaluation runs without gradients, in inference mode
        return _minimise(
            features.detach().clone(), labels.clone(), num_classes, l2_reg, start, max_iterations, tolerance
        )


def linear_probe(
    train_features: Tensor,
    train_labels: Tensor,
    val_features: Tensor,
    val_labels: Tensor,
    num_classes: int,
    l2_regs: Sequence[float] = L2_REGS,
) -> LinearProbe:
    """Fit with each penalty on the training pictures, and with the best one on these and those that chose.

    The best is the most accurate on the pictures that choose, the strongest of equal ones. This is the protocol of
    Radford et al. 2021, arXiv:2103.00020, appendix A.3, on a grid of powers of ten instead of its search, and with
    standardised features, so that one grid suits features of any scale.

    Args:
        train_features: ``[N, d]``.
        train_labels: int64 ``[N]``.
        val_features: ``[M, d]``, of pictures that choose.
        val_labels: int64 ``[M]``.
        num_classes: C.
        l2_regs: penalties to try.

    Raises:
        ValueError: no penalties, shapes, labels or penalties that do not fit, or features that are not finite.
    """
    if not l2_regs:
        raise ValueError("A linear probe needs at least one penalty to try, got none. Use l2_regs=[1e-3].")
    require_labelled(val_features, val_labels, num_classes)
    require_finite(val_features)  # before the first fit: the last one takes them, too
    accuracies: dict[float, float] = {}
    found: LogisticClassifier | None = None
    for l2_reg in sorted(l2_regs, reverse=True):  # from the nearly flat to the steep one: each starts near its minimum
        found = fit_logistic(train_features, train_labels, num_classes, l2_reg, start=found, tolerance=1e-5)
        ranks = zeroshot_ranks(found.logits(val_features), val_labels.to(val_features.device))
        accuracies[l2_reg] = (ranks == 1).double().mean().item()
    best = max(accuracies, key=lambda l2_reg: accuracies[l2_reg])
    features = torch.cat([train_features, val_features])
    whole = fit_logistic(features, torch.cat([train_labels, val_labels]), num_classes, best)
    return LinearProbe(whole, best, accuracies)


def held_out_rows(count: int, seed: int = 0, share: float = 0.2) -> tuple[Tensor, Tensor]:
    """Rows to train on and rows to choose the penalty on, for data whose validation set is what is reported.

    Args:
        count: of rows, at least 2.
        seed: of the division.
        share: that chooses.

    Raises:
        ValueError: fewer than two rows.
    """
    if count < 2:
        raise ValueError(f"A linear probe needs at least two training pictures, got {count}.")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    held_out = max(1, round(share * count))
    return order[held_out:], order[:held_out]


def _minimise(
    features: Tensor,
    labels: Tensor,
    num_classes: int,
    l2_reg: float,
    start: LogisticClassifier | None,
    max_iterations: int,
    tolerance: float,
) -> LogisticClassifier:
    x, y = features.double(), labels.to(features.device)
    mean, std = x.mean(0), x.std(0, correction=0) + _LEAST_STD
    x = (x - mean) / std
    weight, bias = x.new_zeros(x.shape[1], num_classes), x.new_zeros(num_classes)
    if start is not None:
        weight, bias = start.weight.clone(), start.bias.clone()
    parameters = [weight.requires_grad_(), bias.requires_grad_()]
    optimizer = torch.optim.LBFGS(
        parameters,
        max_iter=max_iterations,
        tolerance_grad=tolerance,
        tolerance_change=0.0,  # near the minimum the gradient still falls when the loss, rounded, does not
        history_size=50,
        line_search_fn="strong_wolfe",
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        value = cross_entropy(x @ weight + bias, y) + l2_reg / 2 * weight.square().sum()
        torch.autograd.backward(value)
        return value

    optimizer.step(loss)  # type: ignore[no-untyped-call]
    return LogisticClassifier(mean, std, weight.detach(), bias.detach())
