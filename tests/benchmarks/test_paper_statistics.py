"""The rule that turns three seeds into a word: quantiles from tables, intervals by hand, and every branch."""

import math
import statistics
from dataclasses import replace

import pytest

from benchmarks.paper.statistics import (
    DOES_NOT,
    HOLDS,
    UNTOLD,
    Claim,
    conclude,
    detectable_effect,
    differences,
    paired_interval,
    provable_margin,
    seeds_needed,
    spread,
    t_probability,
    t_quantile,
)

# Student's t, as printed in tables: (probability, degrees of freedom, t)
TABLE = [
    (0.975, 1, 12.706), (0.975, 2, 4.303), (0.975, 3, 3.182), (0.975, 4, 2.776), (0.975, 9, 2.262),
    (0.975, 30, 2.042), (0.8, 1, 1.376), (0.8, 2, 1.061), (0.8, 5, 0.920), (0.95, 10, 1.812), (0.995, 120, 2.617),
]  # fmt: skip


@pytest.mark.parametrize(("probability", "df", "t"), TABLE)
def test_quantiles_are_those_of_the_tables(probability, df, t):
    assert t_quantile(probability, df) == pytest.approx(t, abs=6e-4)  # tables have three decimals


@pytest.mark.parametrize("df", [1, 2, 3, 4, 7, 10])
def test_probability_is_the_integral_of_the_density(df):
    scale = math.exp(math.lgamma((df + 1) / 2) - math.lgamma(df / 2)) / math.sqrt(df * math.pi)
    width, upper = 1e-4, 1.7
    area = sum(scale * (1 + (width * (i + 0.5)) ** 2 / df) ** (-(df + 1) / 2) * width for i in range(17_000))
    assert t_probability(upper, df) == pytest.approx(0.5 + area, abs=1e-8)  # midpoint rule: width squared
    assert t_probability(-upper, df) == pytest.approx(0.5 - area, abs=1e-8)


def test_quantiles_outside_their_range_are_refused():
    for wrong in ((0.5, 2), (1.0, 2), (0.9, 0)):
        with pytest.raises(ValueError, match="Expected a probability"):
            t_quantile(*wrong)


def test_interval_of_three_by_hand():
    found = paired_interval([0.01, 0.02, 0.03])
    half = 4.30265 * 0.01 / math.sqrt(3)
    assert (found.mean, found.sd, found.n) == (pytest.approx(0.02), pytest.approx(0.01), 3)
    assert (found.low, found.high) == (pytest.approx(0.02 - half, abs=1e-7), pytest.approx(0.02 + half, abs=1e-7))


def test_intervals_cover_as_often_as_they_say():
    numbers = __import__("random").Random(0)
    covered = 0
    for _ in range(2000):
        interval = paired_interval([numbers.gauss(1.0, 2.0) for _ in range(3)])
        covered += interval.low < 1.0 < interval.high
    assert covered / 2000 == pytest.approx(0.95, abs=0.015)  # three standard errors of a share of .95


def test_what_can_be_detected_is_found_four_times_in_five():
    numbers = __import__("random").Random(1)
    effect = detectable_effect(1.0, 6)
    found = sum(paired_interval([numbers.gauss(effect, 1.0) for _ in range(6)]).low > 0 for _ in range(2000))
    assert found / 2000 == pytest.approx(0.80, abs=0.04)  # three standard errors, and the approximation


def test_equality_is_shown_four_times_in_five():
    numbers = __import__("random").Random(2)
    seeds = seeds_needed(0.6, 1.0, provable_margin)
    found = [Claim("a", [numbers.gauss(0.0, 0.6) for _ in range(seeds)], 1.0, "same").word for _ in range(2000)]
    # At least as often: seeds are whole. Three standard errors, and the approximation.
    assert 0.76 < found.count(HOLDS) / 2000 < 0.95
    fewer = [Claim("a", [numbers.gauss(0.0, 0.6) for _ in range(seeds - 1)], 1.0, "same").word for _ in range(2000)]
    assert fewer.count(HOLDS) / 2000 < 0.80


def test_seeds_needed_are_the_fewest():
    assert detectable_effect(0.01, seeds_needed(0.01, 0.01)) <= 0.01
    assert detectable_effect(0.01, seeds_needed(0.01, 0.01) - 1) > 0.01
    assert seeds_needed(1.0, 0.001) is None
    assert seeds_needed(0.0, 0.01) == 2


def around(mean, sd):
    """Three numbers with this mean and standard deviation."""
    found = [mean - sd, mean, mean + sd]
    assert statistics.stdev(found) == pytest.approx(sd)
    return found


HALF = 4.30265 / math.sqrt(3)  # half an interval of three, in standard deviations


@pytest.mark.parametrize(
    ("kind", "mean", "sd", "word"),
    [
        ("more", 0.02, 0.019 / HALF, HOLDS),
        ("more", 0.02, 0.021 / HALF, UNTOLD),
        ("more", 0.001, 0.0005 / HALF, DOES_NOT),  # there, but too small to matter
        ("more", 0.009, 0.002 / HALF, HOLDS),  # there, and perhaps large enough
        ("more", 0.0, 0.009 / HALF, DOES_NOT),  # no gain that matters
        ("more", 0.0, 0.011 / HALF, UNTOLD),
        ("more", -0.02, 0.001, DOES_NOT),
        ("no more", 0.0, 0.009 / HALF, HOLDS),
        ("no more", -0.02, 0.019 / HALF, HOLDS),
        ("no more", 0.02, 0.019 / HALF, DOES_NOT),
        ("no more", 0.0, 0.011 / HALF, UNTOLD),
        ("same", 0.0, 0.009 / HALF, HOLDS),
        ("same", 0.0, 0.011 / HALF, UNTOLD),
        ("same", 0.005, 0.004 / HALF, HOLDS),  # another value, but one that does not matter
        ("same", 0.02, 0.009 / HALF, DOES_NOT),
        ("same", -0.02, 0.009 / HALF, DOES_NOT),
        ("same", -0.02, 0.011 / HALF, UNTOLD),
    ],
)
def test_the_rule(kind, mean, sd, word):
    claim = Claim("first over second", around(mean, sd), margin=0.01, kind=kind)
    assert claim.word == word
    could = "equality within" if kind == "same" else "could have been detected"
    assert (could in claim.sentence()) == (word == UNTOLD)


def test_what_cannot_be_told_says_what_could_have_been():
    sentence = Claim("a over b", around(0.01, 0.02)).sentence()
    least, seeds = detectable_effect(0.02, 3) * 100, seeds_needed(0.02, 0.01)
    assert f"{least:.2f} points could have been detected" in sentence
    assert f"1 points would take {seeds} seeds" in sentence
    assert "+1.00 points (95 % interval" in sentence


def test_one_seed_or_none_tells_nothing():
    assert Claim("a over b", [0.5]).word == UNTOLD
    assert "one seed" in Claim("a over b", [0.5]).sentence()
    assert Claim("a over b", []).word == UNTOLD
    assert "no pair" in Claim("a over b", []).sentence()
    with pytest.raises(ValueError, match="at least one pair"):
        paired_interval([])


def test_a_study_holds_where_all_its_claims_do():
    yes, no = Claim("", around(0.05, 0.001)), Claim("", around(-0.05, 0.001))
    untold = Claim("", around(0.0, 0.1))
    assert conclude([yes, yes]) == HOLDS
    assert conclude([yes, untold]) == UNTOLD
    assert conclude([yes, untold, no]) == DOES_NOT
    assert conclude([]) == UNTOLD
    assert conclude([yes, replace(no, decides=False)]) == HOLDS


def test_differences_are_taken_seed_by_seed():
    assert differences({0: 1.0, 2: 5.0, 1: 3.0}, {2: 1.0, 0: 0.5, 7: 0.0}) == [0.5, 4.0]


def test_spread_as_text():
    assert spread([0.10, 0.12, 0.14]) == "12.0 ± 2.0"
    assert spread([0.5]) == "50.0"
    assert spread([]) == "-"
    assert spread([1.0, 3.0], 1) == "2.0 ± 1.4"
