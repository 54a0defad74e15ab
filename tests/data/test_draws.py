"""Random numbers: equal to a plain SplitMix64 in Python integers, independent of company, evenly spread."""

import numpy as np
import pytest

from siglightning.data.draws import permutation, uniform

WORD = 2**64
GAMMA = 0x9E3779B97F4A7C15


def mix(z):
    z = (z + GAMMA) % WORD
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % WORD
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % WORD
    return z ^ (z >> 31)


def reference(stream_number, seed, epoch, index, count):
    run = mix(mix(mix(stream_number) ^ seed % WORD) ^ epoch)
    sample = mix(run ^ index)
    return [(mix((sample + GAMMA * k) % WORD) >> 11) / 2**53 for k in range(1, count + 1)]


@pytest.mark.parametrize(("stream", "number"), [("order", 1), ("picture", 2), ("caption", 3), ("split", 4)])
def test_numbers_equal_the_plain_generator(stream, number):
    for seed, epoch, index in [(0, 0, 0), (7, 3, 1234), (-5, 2, 10**12), (2**63, 0, 1)]:
        drawn = uniform(stream, seed, epoch, np.array([index]), 4)[0]
        assert drawn.tolist() == reference(number, seed, epoch, index, 4)


def test_the_plain_generator_is_splitmix64():
    # First outputs of SplitMix64 seeded with 1234567, as published with the reference implementation in C.
    state, outputs = 1234567, []
    for _ in range(3):
        outputs.append(mix(state))
        state = (state + GAMMA) % WORD
    assert outputs == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_a_sample_draws_the_same_in_any_company():
    index = np.arange(1000)
    together = uniform("picture", 1, 2, index, 5)
    assert np.array_equal(together[437], uniform("picture", 1, 2, np.array([437]), 5)[0])


def test_numbers_are_even_and_unrelated():
    drawn = uniform("picture", 0, 0, np.arange(50_000), 3)
    counts = np.histogram(drawn[:, 0], bins=20, range=(0, 1))[0]
    assert ((counts - 2500) ** 2 / 2500).sum() < 43.8  # chi-squared, 19 degrees of freedom, p = 0.001
    shifted = uniform("picture", 0, 1, np.arange(50_000), 3)
    pairs = np.corrcoef(np.concatenate([drawn, shifted], axis=1).T) - np.eye(6)
    assert np.abs(pairs).max() < 0.02  # 4.5 standard errors


def test_a_permutation_holds_every_number_once_and_differs_by_epoch():
    orders = [permutation("order", 0, epoch, 997) for epoch in range(3)]
    for order in orders:
        assert sorted(order.tolist()) == list(range(997))
    assert (orders[0] == orders[1]).mean() < 0.02
    assert np.array_equal(orders[2], permutation("order", 0, 2, 997))
