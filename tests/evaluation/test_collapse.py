"""Mean cosine against a double loop, effective rank against the definition by singular values in float64."""

import math

import numpy as np
import pytest
import torch
from references import unit_pairs
from torch.nn.functional import normalize

from siglightning.evaluation import collapse_metrics, effective_rank, mean_cosine


def rank_by_definition(rows):
    """Roy and Vetterli, 2007: exp of the Shannon entropy of the singular values over their sum."""
    values = np.linalg.svd(rows.double().numpy(), compute_uv=False)
    shares = [value / values.sum() for value in values if value > 0]
    return math.exp(-sum(share * math.log(share) for share in shares))


@pytest.mark.parametrize(("count", "dim"), [(9, 5), (5, 9), (40, 40)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_both_numbers_follow_their_definitions(count, dim, dtype):
    rows = normalize(unit_pairs(count, dim)[0] * torch.linspace(1, 0.01, dim), dim=1).to(dtype)
    pairs = [(rows[i] @ rows[j]).item() for i in range(count) for j in range(count) if i != j]
    assert mean_cosine(rows).item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-7)
    assert effective_rank(rows).item() == pytest.approx(rank_by_definition(rows), rel=1e-6)


def test_extremes():
    assert mean_cosine(torch.eye(7)).item() == pytest.approx(0, abs=1e-12)
    assert effective_rank(torch.eye(7)).item() == pytest.approx(7)
    two = torch.eye(2).repeat_interleave(8, dim=0)
    assert effective_rank(two).item() == pytest.approx(2)
    assert mean_cosine(two).item() == pytest.approx(2 * 8 * 7 / (16 * 15))


def test_rows_alike_have_rank_one_in_spite_of_rounding():
    """512 equal rows of 512 dimensions, each number rounded on its own to fp32: float32 eigenvalues say 2 and more."""
    generator = torch.Generator().manual_seed(0)
    row = normalize(torch.randn(1, 512, generator=generator, dtype=torch.float64), dim=1)
    rows = (row * (1 + 1e-8 * torch.randn(512, 512, generator=generator, dtype=torch.float64))).float()
    assert 1 <= effective_rank(rows).item() < 1.001
    assert mean_cosine(rows).item() == pytest.approx(1, abs=1e-6)
    gram = (rows.T @ rows).double()
    in_fp32 = torch.linalg.eigvalsh(gram.float()).clamp(min=0).sqrt()
    assert torch.special.entr(in_fp32 / in_fp32.sum()).sum().exp() > 1.01


def test_what_cannot_be_said_is_nan():
    assert math.isnan(mean_cosine(torch.ones(1, 3)).item())
    for rows in (torch.zeros(4, 3), torch.full((4, 3), torch.nan)):
        assert math.isnan(effective_rank(rows).item())


def test_a_batch_is_told_by_its_first_rows():
    x, y = unit_pairs(1500, 6)
    found = collapse_metrics(x.requires_grad_(), y)
    assert set(found) == {f"{side}_{name}" for side in ("image", "text") for name in ("mean_cosine", "effective_rank")}
    assert found["text_effective_rank"].item() == pytest.approx(rank_by_definition(y[:1024]), rel=1e-6)
    assert all(value.dtype == torch.float32 and not value.requires_grad for value in found.values())
