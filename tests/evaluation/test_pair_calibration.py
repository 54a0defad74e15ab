"""Calibration of the pair probability against double loops, torchmetrics and the mechanism for labels."""

import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize
from torch.utils._python_dispatch import TorchDispatchMode
from torchmetrics.functional.classification import binary_calibration_error

from siglightning.evaluation import calibration_error, pair_calibration

LOG_SCALE, BIAS = math.log(12.0), -4.0


def pairs(num_images: int, dim: int, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Two texts an image and some more, ids that are scattered over both sides."""
    g = torch.Generator().manual_seed(seed)
    image_ids = torch.randint(num_images // 2 * 3, (num_images,), generator=g) * 5 - 7
    text_ids = torch.cat([image_ids, image_ids.flip(0), image_ids[:3]])
    text_ids = text_ids[torch.randperm(len(text_ids), generator=g)]
    centre = {int(i): torch.randn(dim, generator=g) for i in image_ids.unique()}
    image, text = (
        normalize(torch.stack([centre[int(i)] for i in ids]) + 0.6 * torch.randn(len(ids), dim, generator=g), dim=1)
        for ids in (image_ids, text_ids)
    )
    return image.double(), text.double(), image_ids, text_ids


def reference(image, text, image_ids, text_ids, log_scale, bias):
    """Straight from the definition: (probability, match) of all pairs in Python floats."""
    table = []
    for x, i in zip(image.tolist(), image_ids.tolist(), strict=True):
        for y, j in zip(text.tolist(), text_ids.tolist(), strict=True):
            z = math.exp(log_scale) * sum(a * b for a, b in zip(x, y, strict=True)) + bias
            table.append((1 / (1 + math.exp(-z)), i == j))
    return table


def reference_error(table, num_bins=15):
    total = 0.0
    for k in range(num_bins):
        inside = [(p, y) for p, y in table if min(int(p * num_bins), num_bins - 1) == k]
        total += abs(sum(p for p, _ in inside) - sum(y for _, y in inside))
    return total / len(table)


@pytest.mark.parametrize("chunk_size", [7, 16, None])
def test_error_and_prior_equal_the_double_loop(chunk_size):
    data = pairs(23, 6, 0)
    table = reference(*data, LOG_SCALE, BIAS)
    found = pair_calibration(*data, LOG_SCALE, BIAS, chunk_size=chunk_size)
    values = {name: metric.value for name, metric in found.metrics(num_resamples=2).items()}
    assert values == pytest.approx(
        {
            "pair_ece": reference_error(table),
            "pair_prior": sum(y for _, y in table) / len(table),
            "pair_mean_probability": sum(p for p, _ in table) / len(table),
        },
        rel=0,
        abs=1e-12,
    )
    assert found.equal_width.counts.count_nonzero() > 10
    assert found.equal_width.counts.sum() == found.by_logit.counts.sum() == 23 * 49


def test_error_agrees_with_torchmetrics_and_with_that_of_labels():
    image, text, image_ids, text_ids = pairs(30, 8, 1)
    p, y = (math.exp(LOG_SCALE) * image @ text.T + BIAS).sigmoid(), image_ids[:, None] == text_ids
    got = pair_calibration(image, text, image_ids, text_ids, LOG_SCALE, BIAS, chunk_size=11).equal_width.error
    assert got == pytest.approx(calibration_error(p, y.double()).item(), abs=1e-12)
    theirs = binary_calibration_error(p.flatten(), y.flatten().long(), n_bins=15, norm="l1")
    assert got == pytest.approx(theirs.item(), abs=1e-12)


def test_bins_by_logit_tell_rare_from_rarer():
    """Cosines on a grid of logits, one nat apart: each lands in its own bin, whose edges are sigmoids of whole nats."""
    cosines = torch.arange(-24, 25, dtype=torch.float64) + 0.5
    texts = torch.stack([cosines, torch.zeros(49, dtype=torch.float64)], dim=1)
    image = torch.tensor([[1.0, 0.0]], dtype=torch.float64)
    bins = pair_calibration(image, texts, torch.tensor([3]), torch.arange(49), 0.0, 0.0).by_logit
    assert bins.counts.tolist() == [5, *[1] * 38, 6]
    assert bins.edges[0] == 0
    assert bins.edges[-1] == 1
    inner = torch.arange(-19, 20, dtype=torch.float64).sigmoid()
    torch.testing.assert_close(bins.edges[1:-1], inner, rtol=0, atol=0)
    assert ((bins.edges[:-1] <= bins.mean_probability) & (bins.mean_probability <= bins.edges[1:])).all()
    assert bins.positive_rate.tolist() == [1 / 5, *[0.0] * 39]  # id 3 is the fourth text, at -20.5


def test_a_calibrated_model_has_a_small_error_and_its_mean_probability_is_the_prior():
    """Matches drawn with the probability that is stated: an error beyond noise would be the evaluation's own."""
    g = torch.Generator().manual_seed(2)
    image = normalize(torch.randn(400, 3, generator=g, dtype=torch.float64), dim=1)
    text = normalize(torch.randn(1, 3, generator=g, dtype=torch.float64), dim=1)
    p = (8.0 * image @ text.T - 2.0).sigmoid()[:, 0]
    is_match = torch.rand(400, generator=g, dtype=torch.float64) < p
    ids = torch.where(is_match, 0, torch.arange(1, 401))
    metrics = pair_calibration(image, text, ids, torch.zeros(1, dtype=torch.int64), math.log(8.0), -2.0).metrics()
    noise = math.sqrt((p * (1 - p)).sum().item()) / 400
    assert abs(metrics["pair_prior"].value - metrics["pair_mean_probability"].value) < 3 * noise
    assert metrics["pair_ece"].value < 3 * noise * math.sqrt(15)  # of 15 bins, each with its own noise
    wrong = pair_calibration(image, text, ids, torch.zeros(1, dtype=torch.int64), math.log(8.0), 0.0).metrics()
    assert wrong["pair_ece"].low > metrics["pair_ece"].high
    assert metrics["pair_prior"].low < metrics["pair_prior"].value < metrics["pair_prior"].high


def test_interval_redraws_pictures_with_all_their_pairs():
    image, text, image_ids, text_ids = pairs(20, 5, 3)
    found = pair_calibration(image, text, image_ids, text_ids, LOG_SCALE, BIAS, chunk_size=8)
    got = found.metrics(num_resamples=30, seed=4)["pair_mean_probability"]
    p = (math.exp(LOG_SCALE) * image[image_ids.argsort(stable=True)] @ text.T + BIAS).sigmoid()
    draws = torch.randint(20, (30, 20), generator=torch.Generator().manual_seed(4))
    means = torch.stack([p[rows].mean() for rows in draws])
    moved = means - means.mean() + p.mean()
    assert got.low == pytest.approx(moved.quantile(0.025).item(), rel=1e-9)
    assert got.high == pytest.approx(moved.quantile(0.975).item(), rel=1e-9)
    assert got.count == 20 * 43


# 15 bins a picture are more than a tile of 64 * 64; by default a tile is 512 * 512, not ranking's 2,048.
@pytest.mark.parametrize(("chunk_size", "held"), [(64, 600 * 15 * 8), (None, 512 * 512 * 8)])
def test_only_tiles_and_sums_by_picture_are_ever_held(chunk_size, held):
    """600 x 3,000 logits of float64 would be 14.4 MB."""
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            out = func(*args, **(kwargs or {}))
            for value in out if isinstance(out, (list, tuple)) else [out]:
                if isinstance(value, Tensor):
                    largest = max(largest, value.untyped_storage().nbytes())
            return out

    image, text = torch.randn(600, 4), torch.randn(3000, 4)
    with Largest():
        pair_calibration(image, text, torch.arange(600), torch.arange(3000) % 600, 0.0, 0.0, chunk_size=chunk_size)
    assert largest == held


def test_embeddings_that_are_not_finite_are_refused():
    image, text, image_ids, text_ids = pairs(6, 4, 5)
    text[2, 1] = torch.nan
    with pytest.raises(ValueError, match="NaN or infinity in texts"):
        pair_calibration(image, text, image_ids, text_ids, 0.0, 0.0)
