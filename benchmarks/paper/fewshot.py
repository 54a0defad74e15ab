"""Ten pictures a class: ridge regression on features, as contrastive papers measure what an image tower knows."""

import torch
from torch import Tensor
from torch.nn.functional import one_hot

RIDGE = 1.0  # on standardised features, a row of the sum of squares


def ridge_predictions(train: Tensor, labels: Tensor, test: Tensor, num_classes: int) -> Tensor:
    """Classes int64 ``[M]`` of features ``[M, d]`` by least squares from ``[N, d]`` to -1 and 1.

    Features are standardised by the training rows; a constant joins them. Solved in fp64 in the dual, ``N x N``.
    """
    mean, std = train.double().mean(0), train.double().std(0).clamp(min=1e-6)
    rows, others = (((part.double() - mean) / std) / train.shape[1] ** 0.5 for part in (train, test))
    targets = 2 * one_hot(labels, num_classes).double() - 1
    centre = targets.mean(0)
    kernel = rows @ rows.T + RIDGE / len(rows) * torch.eye(len(rows), dtype=torch.float64)
    scores = others @ rows.T @ torch.linalg.solve(kernel, targets - centre) + centre
    return scores.argmax(1)


def few_shot_accuracy(features: Tensor, labels: Tensor, shots: int, draws: int, seed: int = 0) -> float:
    """Accuracy, averaged over classes and over draws of ``shots`` rows a class; all other rows are tested on.

    Classes with no row beyond the shots are left out.

    Args:
        features: ``[N, d]``.
        labels: int64 ``[N]``.
        shots: rows of each class to learn from.
        draws: how often they are drawn, each time the same for every caller.
        seed: of the draws.
    """
    classes = [c for c in labels.unique().tolist() if (labels == c).sum() > shots]
    found = []
    for draw in range(draws):
        generator = torch.Generator().manual_seed(seed * 1000 + draw)
        picked = []
        for c in classes:
            rows = (labels == c).nonzero().squeeze(1)
            picked.append(rows[torch.randperm(len(rows), generator=generator)[:shots]])
        chosen = torch.cat(picked)
        rest = torch.isin(labels, torch.tensor(classes))
        rest[chosen] = False
        renamed = torch.searchsorted(torch.tensor(classes), labels)
        right = ridge_predictions(features[chosen], renamed[chosen], features[rest], len(classes)) == renamed[rest]
        found.append(sum(right[renamed[rest] == c].double().mean() for c in range(len(classes))) / len(classes))
    return float(sum(found) / len(found))
