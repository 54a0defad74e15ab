"""Bootstrap intervals: against a slow resampling loop, known standard errors, and coverage."""

import math
import random

import pytest
import torch

from siglightning.evaluation import bootstrap as bootstrap_module
from siglightning.evaluation import bootstrap_interval, mean_with_interval, statistics_with_interval


def test_interval_agrees_with_a_resampling_loop():
    values = torch.rand(60, generator=torch.Generator().manual_seed(0), dtype=torch.float64) ** 2
    rng, rows = random.Random(0), values.tolist()
    means = sorted(sum(rng.choices(rows, k=60)) / 60 for _ in range(4000))
    low, high = bootstrap_interval(values, num_resamples=4000)
    assert low.shape == high.shape == ()
    assert low.item() == pytest.approx(means[100], abs=0.006)
    assert high.item() == pytest.approx(means[3900], abs=0.006)


def test_seed_decides_and_global_generator_is_untouched():
    values = torch.rand(50, 2)
    torch.manual_seed(7)
    before = torch.get_rng_state()
    first, again, other = (torch.stack(bootstrap_interval(values, seed=seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(before, torch.get_rng_state())


def test_blocks_do_not_change_the_result(monkeypatch):
    values = torch.rand(30, 3, dtype=torch.float64)
    whole = torch.stack(bootstrap_interval(values, num_resamples=100))
    monkeypatch.setattr(bootstrap_module, "_DRAWS_AT_ONCE", 7 * 30)
    torch.testing.assert_close(torch.stack(bootstrap_interval(values, num_resamples=100)), whole)


def test_groups_are_drawn_together():
    """Each value four times adds nothing: with groups the interval is that of the single values."""
    single = torch.rand(80, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    fourfold, groups = single.repeat(4), torch.arange(80).repeat(4) * 5
    alone = torch.stack(bootstrap_interval(single))
    torch.testing.assert_close(torch.stack(bootstrap_interval(fourfold, groups=groups)), alone)
    naive = torch.stack(bootstrap_interval(fourfold))
    assert (naive[1] - naive[0]).item() == pytest.approx((alone[1] - alone[0]).item() / 2, rel=0.15)


def test_unequal_groups_weigh_by_their_size():
    """A resample's mean is over its samples: 3 of group 0 and 1 of group 1 give 0, 1/4 or 1, never 1/2."""
    values, groups = torch.tensor([0.0, 0.0, 0.0, 1.0]), torch.tensor([0, 0, 0, 1])
    low, high = bootstrap_interval(values, groups=groups, confidence=0.2)
    assert (low.item(), high.item()) == (0.25, 0.25)


def test_coverage_is_near_nominal():
    """Of 300 samples of 100 coin flips with p = .3, about 95 % of intervals hold p."""
    g = torch.Generator().manual_seed(2)
    flips = (torch.rand(100, 300, generator=g) < 0.3).double()
    low, high = bootstrap_interval(flips, num_resamples=400)
    covered = ((low <= 0.3) & (high >= 0.3)).double().mean().item()
    assert covered == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 300))


def test_a_statistic_that_never_moves_is_its_own_interval():
    """The mean of a thousand sevenths is another number than a seventh, by rounding."""
    (found,) = statistics_with_interval(lambda weights: (2 * weights.sum(1) / (weights.sum(1) * 14))[:, None], 7, [0.0])
    assert found.value == found.low == found.high == 1 / 7


def test_mean_with_interval_fills_every_field():
    first, second = mean_with_interval(torch.tensor([[0, 1], [1, 1], [1, 1], [1, 1]]), [0.5, 0.25])
    assert (first.value, first.chance, first.count) == (0.75, 0.5, 4)
    assert first.low < 0.75 < first.high
    assert (second.value, second.low, second.high) == (1.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        (torch.ones(0), {}, "at least one sample"),
        (torch.ones(3), {"confidence": 95.0}, "between 0 and 1"),
        (torch.ones(3), {"groups": torch.arange(2)}, "each of the 3 samples"),
    ],
)
def test_misuse_is_explained(values, options, message):
    with pytest.raises(ValueError, match=message):
        bootstrap_interval(values, **options)
