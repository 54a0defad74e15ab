"""Slow, obvious references: double loops over Python numbers and float64 tensors, straight from the definitions."""

import math

import torch
from torch import Tensor
from torch.nn import functional


def unit_pairs(num_pairs: int, dim: int, *, alignment: float = 0.5, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Return float64 unit rows `[n, d]` twice, the second partly aligned with the first."""
    generator = torch.Generator().manual_seed(seed)
    x = functional.normalize(torch.randn(num_pairs, dim, generator=generator, dtype=torch.float64), dim=1)
    noise = functional.normalize(torch.randn(num_pairs, dim, generator=generator, dtype=torch.float64), dim=1)
    return x, functional.normalize(alignment * x + (1 - alignment) * noise, dim=1)


def softplus(value: float) -> float:
    return value + math.log1p(math.exp(-value)) if value > 0 else math.log1p(math.exp(value))


def sigmoid(value: float) -> float:
    return 1 / (1 + math.exp(-value)) if value > 0 else math.exp(value) / (1 + math.exp(value))


def pair_sign(i: int, j: int, ids: list[int] | None, match: str) -> int:
    """+1 for a positive, -1 for a negative, 0 for a pair that is left out."""
    if i == j:
        return 1
    if ids is None or ids[i] != ids[j]:
        return -1
    return 1 if match == "positive" else 0


def sigmoid_loss_loops(x, y, log_scale, bias, ids=None, match="positive", weights=None):
    """Loss, its four gradients, and each one's sum of absolute terms, by a loop over all pairs in float64.

    `weights` is a list of lists of what each pair counts, `None` for one each.
    Returns `(values, magnitudes)`: dictionaries with keys loss, image, text, log_scale, bias.
    """
    n, t = len(x), math.exp(log_scale)
    values = {"loss": 0.0, "image": torch.zeros_like(x), "text": torch.zeros_like(y), "log_scale": 0.0, "bias": 0.0}
    magnitudes = {key: value.clone() if isinstance(value, Tensor) else 0.0 for key, value in values.items()}
    for i in range(n):
        for j in range(n):
            z = pair_sign(i, j, ids, match)
            if z == 0:
                continue
            cosine = float(x[i] @ y[j])
            s = -z * (t * cosine + bias)
            weight = weights[i][j] if weights is not None else 1
            derivative = -z * sigmoid(s) / n * weight
            terms = {
                "loss": softplus(s) / n * weight,
                "log_scale": derivative * t * cosine,
                "bias": derivative,
            }
            for key, term in terms.items():
                values[key] += term
                magnitudes[key] += abs(term)
            values["image"][i] += derivative * t * y[j]
            magnitudes["image"][i] += (derivative * t * y[j]).abs()
            values["text"][j] += derivative * t * x[i]
            magnitudes["text"][j] += (derivative * t * x[i]).abs()
    return values, magnitudes


def mix64(word: int) -> int:
    """SplitMix64's finaliser as its paper prints it, on Python's whole numbers."""
    word = (word ^ (word >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ (word >> 27)) * 0x94D049BB133111EB % 2**64
    return word ^ (word >> 31)


def random_draw(seed: int, step: int, i: int, j: int) -> float:
    """A number in [0, 1) for image i and text j of the global batch."""
    key = mix64((mix64(seed % 2**64) + step) % 2**64)
    word = mix64((mix64((key + i) % 2**64) + 0x9E3779B97F4A7C15 * (j + 1)) % 2**64)
    return ((word + 2**63) % 2**64) / 2**64


def masked_weights(logits, kind, ratio, *, seed=0, step=0, ids=None, match="positive"):
    """What each pair counts, by sorting all negatives of a dense matrix; and how far the threshold is from others.

    Positives count 1, negatives 1, 0, or where they are equal at the threshold a share of what is left.
    """
    n = len(logits)
    signs = [[pair_sign(i, j, ids, match) for j in range(n)] for i in range(n)]
    positives = sum(sign == 1 for row in signs for sign in row)
    negatives = sorted((float(logits[i][j]) for i in range(n) for j in range(n) if signs[i][j] == -1), reverse=True)
    kept = min(round(ratio * positives), len(negatives))
    weights = [[float(sign == 1) for sign in row] for row in signs]
    if kind == "easy":
        negatives.reverse()
    threshold = negatives[kept - 1]
    above, tied = negatives.index(threshold), negatives.count(threshold)
    others = [abs(logit - threshold) for logit in negatives if logit != threshold]
    for i in range(n):
        for j in range(n):
            if signs[i][j] == -1 and kind == "random":
                share = ratio * positives / len(negatives)
                weights[i][j] = float(kept == len(negatives) or random_draw(seed, step, i, j) < share)
            elif signs[i][j] == -1:
                logit = float(logits[i][j])
                beyond = logit > threshold if kind == "hard" else logit < threshold
                weights[i][j] = float(beyond) + (logit == threshold) * (kept - above) / tied
    return weights, min(others, default=math.inf)


def softmax_loss_loops(x, y, log_scale):
    """CLIP's loss by its definition, one softmax at a time in float64; gradients by autograd of that definition."""
    x, y = x.clone().requires_grad_(), y.clone().requires_grad_()
    t_prime = torch.tensor(log_scale, dtype=torch.float64, requires_grad=True)
    total = torch.zeros((), dtype=torch.float64)
    for i in range(len(x)):
        row = torch.stack([t_prime.exp() * (x[i] @ y[j]) for j in range(len(y))])
        column = torch.stack([t_prime.exp() * (x[j] @ y[i]) for j in range(len(x))])
        total = total - (row[i] - row.logsumexp(0)) - (column[i] - column.logsumexp(0))
    loss = total / (2 * len(x))
    gradients = torch.autograd.grad(loss, (x, y, t_prime))
    return dict(zip(("loss", "image", "text", "log_scale"), (loss.detach(), *gradients), strict=True))


def softmax_magnitudes(x, y, log_scale):
    """Sum of absolute terms of the softmax loss and of each of its gradients, as `softmax_loss_loops` names them."""
    n, t = len(x), math.exp(log_scale)
    logits = t * x @ y.T
    rows, columns = logits.softmax(1), logits.softmax(0)
    weight = (rows + columns + 2 * torch.eye(n, dtype=x.dtype)) / (2 * n)
    loss = (logits.logsumexp(1).abs() + logits.logsumexp(0).abs() + 2 * logits.diagonal().abs()).sum() / (2 * n)
    return {
        "loss": loss,
        "image": t * weight @ y.abs(),
        "text": t * weight.T @ x.abs(),
        "log_scale": (weight * logits.abs()).sum(),
    }
