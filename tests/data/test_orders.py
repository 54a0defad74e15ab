"""Orders of epochs: what they hold, and that they are functions of seed and epoch."""

import numpy as np
import pytest

from siglightning.data.orders import as_they_are, balanced, in_blocks, shares, shuffled

BOUNDS = np.array([0, 7, 7, 20, 50, 51, 90])
LANGUAGES = np.repeat([0, 1, 2], [800, 180, 20])[np.random.default_rng(0).permutation(1000)]


@pytest.mark.parametrize("make", [lambda seed: shuffled(90, seed), lambda seed: in_blocks(BOUNDS, seed, 2)])
def test_every_sample_once_and_otherwise_in_every_epoch_and_under_every_seed(make):
    orders = [make(1)(0), make(1)(1), make(2)(0)]
    for order in orders:
        assert sorted(order) == list(range(90))
    assert len({tuple(order) for order in orders}) == 3
    assert (make(1)(1) == orders[1]).all()


def test_as_they_are():
    assert list(as_they_are(5)(3)) == [0, 1, 2, 3, 4]
    assert list(as_they_are(10**15)(0)[7:9]) == [
        7,
        8,
    ]  # costs no memory: an epoch of a stream may be as long as one likes


def test_blocks_stay_together_and_mix_with_few_others():
    for epoch in range(20):
        order = in_blocks(BOUNDS, 5, blocks_at_once=2)(epoch)
        block = np.searchsorted(BOUNDS, order, side="right") - 1
        first, last = {}, {}
        for place, number in enumerate(block):
            first.setdefault(number, place)
            last[number] = place
        for place in range(90):
            assert sum(first[number] <= place <= last[number] for number in first) <= 2
    assert any((np.diff(in_blocks(BOUNDS, 5, 2)(epoch)) != 1).sum() > 40 for epoch in range(3))  # within blocks, too


def test_shares_follow_mt5():
    counts = np.array([800, 180, 20, 0])
    np.testing.assert_allclose(shares(counts, 1), counts / 1000)
    np.testing.assert_allclose(shares(counts, float("inf")), [1 / 3, 1 / 3, 1 / 3, 0])
    # Xue et al. 2021 sample with p ~ n ** alpha, alpha = 0.3: the temperature is its inverse.
    expected = counts**0.3 / (counts**0.3).sum()
    np.testing.assert_allclose(shares(counts, 1 / 0.3), expected, rtol=1e-12)


@pytest.mark.parametrize("temperature", [1.0, 2.0, float("inf")])
def test_languages_get_their_shares_and_every_row_its_turn(temperature):
    order = balanced(LANGUAGES, 3, temperature)
    expected = shares(np.bincount(LANGUAGES), temperature) * 1000
    seen = np.zeros(1000, dtype=int)
    for epoch in range(12):
        drawn = order(epoch)
        assert len(drawn) == 1000
        np.testing.assert_array_less(np.abs(np.bincount(LANGUAGES[drawn]) - expected), 1.0)
        seen += np.bincount(drawn, minlength=1000)
        for language in range(3):
            times = seen[language == LANGUAGES]
            assert times.max() - times.min() <= 1  # nobody twice before everybody once, over all epochs
        assert (drawn == order(epoch)).all()
    assert seen.min() >= 4
    assert (order(0) != order(1)).any()
    assert (np.diff(LANGUAGES[order(0)]) != 0).sum() > 100  # languages are mixed
