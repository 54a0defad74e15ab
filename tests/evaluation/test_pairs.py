"""Mean pair logits against a double loop over all pairs."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from siglightning.evaluation import pair_logits


def reference(image, text, log_scale, bias, match_ids):
    positive, negative = [], []
    for i, x in enumerate(image.tolist()):
        for j, y in enumerate(text.tolist()):
            logit = math.exp(log_scale) * sum(a * b for a, b in zip(x, y, strict=True)) + bias
            (positive if match_ids[i] == match_ids[j] else negative).append(logit)
    return sum(positive) / len(positive), sum(negative) / len(negative)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("match_ids", [None, [5, 2, 5, 5, 9, 2, 0]])
def test_means_equal_double_loop(dtype, match_ids):
    g = torch.Generator().manual_seed(0)
    image, text = (normalize(torch.randn(7, 4, generator=g, dtype=torch.float64), dim=1).to(dtype) for _ in range(2))
    ids = None if match_ids is None else torch.tensor(match_ids)
    got = pair_logits(image, text, torch.tensor([2.0]), torch.tensor([-3.0]), ids)
    want = reference(image, text, 2.0, -3.0, match_ids or range(7))
    assert (got.positive.shape, got.negative.dtype) == ((), torch.float64)
    assert (got.positive.item(), got.negative.item()) == pytest.approx(
        want, rel=2e-6 if dtype == torch.float32 else 1e-12
    )


def test_no_bias_counts_as_zero_and_one_pair_has_no_negatives():
    got = pair_logits(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]]), torch.tensor([math.log(10)]))
    assert got.positive.item() == pytest.approx(6.0)
    assert math.isnan(got.negative.item())


def test_gradients_are_not_tracked():
    image = torch.eye(3, requires_grad=True)
    assert not pair_logits(image, torch.eye(3), torch.zeros(1, requires_grad=True)).positive.requires_grad


def test_memory_is_not_quadratic():
    """At b = 200,000 the matrix of logits alone would be 160 GB."""
    rows = torch.ones(200_000, 2) / math.sqrt(2)
    assert pair_logits(rows, rows, torch.zeros(1), torch.tensor([1.0])).negative.item() == pytest.approx(2.0)


def test_other_shapes_are_refused():
    with pytest.raises(ValueError, match="one text for each image"):
        pair_logits(torch.eye(3), torch.eye(4), torch.zeros(1))
