"""The rule for spikes against `statistics`, on planted ones and through a resume."""

import math
import statistics

import numpy as np
import pytest

from siglightning.evaluation import SpikeCounter


def noisy(count, seed=0):
    return (4 + 0.1 * np.random.default_rng(seed).standard_normal(count)).tolist()


def by_definition(losses, window=100, deviations=8.0, share=0.05):
    """One loop over the steps, with Python's own medians."""
    count, was_above = 0, False
    for step, loss in enumerate(losses):
        past = losses[max(0, step - window) : step]
        above = not math.isfinite(loss)
        if len(past) >= window / 2:
            median = statistics.median(past)
            spread = 1.4826 * statistics.median(abs(value - median) for value in past)
            above |= loss > median + max(deviations * spread, share * abs(median))
        count, was_above = count + (above and not was_above), above
    return count


def counted(losses, **options):
    counter = SpikeCounter(**options)
    counter.add(losses)
    return counter.count


def test_planted_spikes_are_counted_and_noise_is_not():
    losses = noisy(1000)
    assert counted(losses) == 0
    for start, length in ((200, 1), (400, 3), (700, 10)):
        losses[start : start + length] = [value + 2 for value in losses[start : start + length]]
    assert counted(losses) == by_definition(losses) == 3


@pytest.mark.parametrize("options", [{}, {"deviations": 2.0}, {"window": 11, "deviations": 3.0, "share": 0.0}])
def test_the_rule_is_the_documented_one(options):
    falling = [10 * math.exp(-step / 100) for step in range(600)]
    heavy = (np.array(falling) + 0.2 * np.abs(np.random.default_rng(1).standard_t(2, 600))).tolist()
    assert counted(heavy, **options) == by_definition(heavy, **options)
    assert counted(falling, **options) == 0


def test_a_rise_that_stays_is_one_spike_and_nothing_counts_at_the_start():
    losses = noisy(300) + [value + 3 for value in noisy(300, seed=1)]
    assert counted(losses) == 1
    assert counted([9.0, 1.0] * 24) == 0


def test_a_loss_that_hardly_varies_and_one_that_is_not_finite():
    flat = [2.0] * 200
    assert counted([*flat, 2.05, *flat]) == 0
    assert counted([*flat, 2.2, *flat]) == 1
    assert counted([*flat, math.nan, math.nan, *flat, math.inf, *flat]) == 2


@pytest.mark.parametrize("cut", [1, 30, 201, 402])
def test_a_resumed_count_is_that_of_one_run(cut):
    losses = noisy(600)
    losses[200:202] = [9.0, 9.0]
    losses[401] = 9.0
    first, second = SpikeCounter(), SpikeCounter()
    first.add(losses[:cut])
    second.load_state_dict(first.state_dict())
    second.add(losses[cut:])
    assert second.count == 2
    assert second.state_dict()["recent"] == losses[-100:]


def test_wrong_settings_are_refused():
    with pytest.raises(ValueError, match=r"a window of at least 4 losses.*got 3, 8.0 and 0.05"):
        SpikeCounter(window=3)
