"""Few-shot classification against least squares by another route, on features of real pictures."""

import pytest
import torch
from sklearn.linear_model import Ridge
from sklearn.metrics import accuracy_score

from siglightning.data import PictogramArchive
from siglightning.evaluation.fewshot import few_rows, few_shot_accuracy, fit_ridge


@pytest.fixture(scope="module")
def pictures():
    """Thumbnails of drawings in ten categories with many pictures, as features."""
    archive = PictogramArchive.open()
    category = archive.concepts["category"].to_pylist()
    names = [category[concept] for concept in archive.pictures["concept"].to_pylist()]
    common = sorted(set(names), key=names.count, reverse=True)[:4]
    rows = [row for name in common for row in [r for r, other in enumerate(names) if other == name][:60]]
    images = torch.stack([archive.read_image(row) for row in rows]).float()
    features = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
    return features, torch.tensor([common.index(names[row]) for row in rows])


def by_stacked_rows(features, labels, classes, l2):
    """The penalty as d + 1 further rows of an ordinary least-squares problem."""
    x = features.double()
    mean, std = x.mean(0), ((x - x.mean(0)) ** 2).mean(0).sqrt() + 1e-5
    x = torch.cat([(x - mean) / std, torch.full((len(x), 1), 100.0, dtype=torch.float64)], dim=1)
    y = torch.full((len(x), classes), -1.0, dtype=torch.float64)
    for row, label in enumerate(labels.tolist()):
        y[row, label] = 1.0
    width = x.shape[1]
    rows = torch.cat([x, l2**0.5 * torch.eye(width, dtype=torch.float64)])
    right = torch.cat([y, torch.zeros(width, classes, dtype=torch.float64)])
    return torch.linalg.lstsq(rows, right).solution


@pytest.mark.parametrize("count", [20, 200])  # fewer rows than features, and more: two ways to solve it
@pytest.mark.parametrize("l2", [1e-3, 2.0**10])
def test_weights_solve_the_penalised_least_squares(pictures, count, l2):
    features, labels = pictures
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))[:count]
    found = fit_ridge(features[order], labels[order], 4, l2)
    expected = by_stacked_rows(features[order], labels[order], 4, l2)
    scale = expected.abs().max().item()
    # Float64 with a condition of at most the largest eigenvalue, 1e4 * 200, over the penalty.
    torch.testing.assert_close(found.weight, expected, rtol=1e-6, atol=1e-8 * scale)


@pytest.mark.parametrize("solver", ["svd", "cholesky"])
def test_scores_and_accuracy_are_those_of_scikit_learn(pictures, solver):
    """Its ridge regression on the same standardised features, which it neither centres nor gives a bias."""
    features, labels = pictures
    train, test = torch.arange(240) % 2 == 0, torch.arange(240) % 2 == 1
    found = fit_ridge(features[train], labels[train], 4)

    def standardised(rows):
        x = (rows.double() - features[train].double().mean(0)) / (features[train].double().std(0, correction=0) + 1e-5)
        return torch.cat([x, torch.full((len(x), 1), 100.0)], dim=1).numpy()

    targets = torch.where(labels[train, None] == torch.arange(4), 1.0, -1.0).double().numpy()
    theirs = Ridge(alpha=1024.0, fit_intercept=False, solver=solver).fit(standardised(features[train]), targets)
    scores = torch.from_numpy(theirs.predict(standardised(features[test])))
    torch.testing.assert_close(found.logits(features[test]), scores, rtol=0, atol=1e-12)
    every = few_shot_accuracy(features[train], labels[train], features[test], labels[test], 4, shots=[30], num_draws=1)
    right = accuracy_score(labels[test], scores.argmax(1))  # all 30 of each class: the draw is the training set
    assert every["fewshot@30"].value == pytest.approx(right, abs=1e-12)


def test_every_accuracy_has_the_interval_of_its_pictures(pictures):
    """A share of M independent pictures: the normal approximation, good to a hundredth or two."""
    features, labels = pictures
    train = torch.arange(240) % 2 == 0
    found = few_shot_accuracy(features[train], labels[train], features[~train], labels[~train], 4, num_draws=1)
    for value in found.values():
        half = 1.96 * (value.value * (1 - value.value) / 120) ** 0.5
        assert value.count == 120
        assert (value.low, value.high) == pytest.approx((value.value - half, value.value + half), abs=0.02)


def test_classes_can_be_told_from_thumbnails_and_more_shots_tell_more(pictures):
    features, labels = pictures
    train = torch.arange(len(labels)) % 2 == 0
    found = few_shot_accuracy(features[train], labels[train], features[~train], labels[~train], 4, shots=(1, 10, 25))
    assert list(found) == ["fewshot@1", "fewshot@10", "fewshot@25"]
    assert found["fewshot@25"].low > found["fewshot@25"].chance == 0.25
    assert found["fewshot@25"].value > found["fewshot@1"].value
    rows = [few_rows(labels[train], 10, 4, seed=seed) for seed in range(3)]
    by_hand = []
    for drawn in rows:
        weight = by_stacked_rows(features[train][drawn], labels[train][drawn], 4, 1024.0)
        x = features[train][drawn].double()
        test = (features[~train].double() - x.mean(0)) / (x.std(0, correction=0) + 1e-5)
        scores = test @ weight[:-1] + 100 * weight[-1]
        by_hand.append((scores.argmax(1) == labels[~train]).double().mean().item())
    assert found["fewshot@10"].value == pytest.approx(sum(by_hand) / 3, abs=1e-12)


def test_draws_are_so_many_of_each_class_and_nested(pictures):
    _, labels = pictures
    few, more = few_rows(labels, 3, 4, seed=5), few_rows(labels, 7, 4, seed=5)
    assert torch.bincount(labels[few]).tolist() == [3] * 4
    assert len(set(more.tolist())) == 28
    assert set(few.tolist()) < set(more.tolist())
    assert few.tolist() != few_rows(labels, 3, 4, seed=6).tolist()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_classes": 3}, r"labels in 0 \.\.\. 2"),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, "one label a row"),
        ({"l2_reg": 0.0}, "above 0, got 0"),
    ],
)
def test_what_does_not_fit_is_refused(pictures, change, message):
    features, labels = pictures
    with pytest.raises(ValueError, match=message):
        fit_ridge(**{"features": features, "labels": labels, "num_classes": 4, **change})


def test_too_few_pictures_are_refused(pictures):
    with pytest.raises(ValueError, match="at least 100 pictures of every class, got 60 of class 0"):
        few_rows(pictures[1], 100, 4)


def test_nan_never_helps_and_ties_count_against(pictures):
    features, labels = pictures
    whole = few_shot_accuracy(features, labels, features, labels, 4, shots=[60], num_draws=1)["fewshot@60"].value
    right = fit_ridge(features, labels, 4).logits(features).argmax(1) == labels
    assert whole == right.double().mean().item()
    broken = features.clone()
    broken[::3, 5] = torch.nan
    found = few_shot_accuracy(features, labels, broken, labels, 4, shots=[60], num_draws=1)["fewshot@60"]
    assert found.value == (right & (torch.arange(240) % 3 > 0)).double().mean().item() < whole
    same = features[:1].expand(240, -1)  # scores of classes in equal numbers differ by rounding alone
    for found in few_shot_accuracy(same, labels, features, labels, 4, shots=[1, 5, 60]).values():
        assert found.value == 0.0


def test_features_that_are_not_finite_are_not_learnt_from(pictures):
    features, labels = pictures
    broken = features.clone()
    broken[7, 3] = torch.nan
    with pytest.raises(ValueError, match=r"finite features .* 1 of 240 rows, first in row 7. Check the network"):
        few_shot_accuracy(broken, labels, features, labels, 4, shots=[1])
    with pytest.raises(ValueError, match="finite features"):
        fit_ridge(broken, labels, 4)
