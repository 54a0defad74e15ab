"""The mean over sets of the same pictures, against loops over resamples."""

import numpy as np
import pytest
import torch

from siglightning.evaluation import ranks_both_ways, retrieval_metrics
from siglightning.evaluation.average import PictureOutcomes, average_over_sets

KEYS = [f"picture {number}" for number in range(40)]


def languages():
    """Three sets of nearly the same pictures with one or two captions each, of which the first is the easiest."""
    g = torch.Generator().manual_seed(0)
    centres = torch.randn(40, 12, generator=g, dtype=torch.float64)
    sets, data = {}, {}
    for name, noise, rows in (("a", 0.5, range(40)), ("b", 1.0, range(5, 40)), ("c", 2.0, [*range(30), 39])):
        rows = torch.tensor(list(rows))
        owners = torch.cat([torch.arange(len(rows)), torch.arange(0, len(rows), 2)])
        image = centres[rows]
        text = image[owners] + noise * torch.randn(len(owners), 12, generator=g, dtype=torch.float64)
        data[name] = (image, text, rows, rows[owners])
        sets[name] = PictureOutcomes.of([KEYS[row] for row in rows], owners, ranks_both_ways(*data[name]))
    return sets, data


def test_average_is_the_plain_mean_over_sets():
    sets, data = languages()
    metrics = {name: retrieval_metrics(*of_set, num_resamples=2) for name, of_set in data.items()}
    got = average_over_sets(sets, metrics, num_resamples=2)
    assert got.keys() == metrics["a"].keys()
    for name, value in got.items():
        of_sets = [metrics[of_set][name] for of_set in "abc"]
        assert value.value == pytest.approx(sum(m.value for m in of_sets) / 3, rel=1e-12), name
        assert value.chance == pytest.approx(sum(m.chance for m in of_sets) / 3, rel=1e-12), name
        assert value.count == sum(m.count for m in of_sets)


def test_interval_draws_each_picture_in_all_sets_at_once():
    sets, data = languages()
    metrics = {name: retrieval_metrics(*of_set, num_resamples=2) for name, of_set in data.items()}
    got = average_over_sets(sets, metrics, num_resamples=50, seed=1)["t2i_recall@1"]
    draws = torch.randint(40, (50, 40), generator=torch.Generator().manual_seed(1))
    values = []
    for drawn in draws.tolist():
        recalls = []
        for of_set in data.values():
            _, ranks = ranks_both_ways(*of_set)
            weights = torch.tensor([drawn.count(owner) for owner in of_set[3].tolist()])
            recalls.append(((ranks == 1) * weights).sum().item() / weights.sum().item())
        values.append(sum(recalls) / 3)
    moved = np.array(values) - np.mean(values) + got.value
    assert got.low == pytest.approx(np.quantile(moved, 0.025), rel=1e-9)
    assert got.high == pytest.approx(np.quantile(moved, 0.975), rel=1e-9)
    assert got.low < got.value < got.high
