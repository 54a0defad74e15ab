"""The linear probe against scikit-learn, on features of real pictures."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from siglightning.data import PictogramArchive
from siglightning.evaluation.probe import LinearProbe, fit_logistic, held_out_rows, linear_probe


@pytest.fixture(scope="module")
def pictures():
    """48 numbers of each of 240 drawings in four categories, and 6 that never vary."""
    archive = PictogramArchive.open()
    category = archive.concepts["category"].to_pylist()
    names = [category[concept] for concept in archive.pictures["concept"].to_pylist()]
    common = sorted(set(names), key=names.count, reverse=True)[:4]
    rows = [row for name in common for row in [r for r, other in enumerate(names) if other == name][:60]]
    images = torch.stack([archive.read_image(row) for row in rows]).float()
    features = torch.nn.functional.adaptive_avg_pool2d(images, 4).flatten(1)
    features = torch.cat([features, torch.ones(len(features), 6)], dim=1)
    return features, torch.tensor([common.index(names[row]) for row in rows])


def theirs(features, labels, l2_reg):
    x = features.double().numpy()
    x = (x - x.mean(0)) / (x.std(0) + 1e-5)
    model = LogisticRegression(C=1 / (l2_reg * len(x)), tol=1e-10, max_iter=20_000).fit(x, labels.numpy())
    return model, x


@pytest.mark.parametrize("l2_reg", [1e-3, 1e-1])
def test_it_is_the_minimum_that_scikit_learn_finds(pictures, l2_reg):
    features, labels = pictures
    found = fit_logistic(features, labels, 4, l2_reg, tolerance=1e-9)
    model, x = theirs(features, labels, l2_reg)
    # A gradient g is at most |g| / l2_reg away from the minimum: theirs was measured as 2.5e-8, ours as 2e-9.
    near = 4e-8 / l2_reg
    np.testing.assert_allclose(found.weight.T, model.coef_, rtol=0, atol=near)
    np.testing.assert_allclose(found.logits(features).softmax(1), model.predict_proba(x), rtol=0, atol=near)
    assert found.logits(features).argmax(1).tolist() == model.predict(x).tolist()
    again = fit_logistic(features, labels, 4, l2_reg, start=fit_logistic(features, labels, 4, 1.0), tolerance=1e-9)
    torch.testing.assert_close(again.weight, found.weight, rtol=0, atol=near)


def test_gradient_at_the_minimum_is_none(pictures):
    """Written out: ``x'(p - y) / N + l2 w`` and the mean of ``p - y``."""
    features, labels = pictures
    found = fit_logistic(features, labels, 4, 1e-2, tolerance=1e-10)
    x = (features.double() - found.mean) / found.std
    excess = found.logits(features).softmax(1) - torch.nn.functional.one_hot(labels, 4)
    # The loss of order 1 is rounded to 1e-16, near its minimum that of a step of its root, 1e-8.
    assert (x.T @ excess / len(x) + 1e-2 * found.weight).abs().max() < 1e-8
    assert excess.mean(0).abs().max() < 1e-8


def test_the_penalty_is_chosen_on_other_pictures(pictures):
    features, labels = pictures
    order = torch.randperm(240, generator=torch.Generator().manual_seed(1))
    train, val, test = order[:120], order[120:180], order[180:]
    probe = linear_probe(features[train], labels[train], features[val], labels[val], 4, l2_regs=[1e-4, 1e-2, 1, 100])
    assert set(probe.accuracies) == {1e-4, 1e-2, 1, 100}
    by_hand = {}
    for l2_reg in probe.accuracies:
        found = fit_logistic(features[train], labels[train], 4, l2_reg)
        by_hand[l2_reg] = (found.logits(features[val]).argmax(1) == labels[val]).double().mean().item()
    # the sweep stops earlier: a picture near the border may fall on the other side
    assert probe.accuracies == pytest.approx(by_hand, abs=1.5 / 60)
    assert probe.l2_reg == max(l2 for l2, acc in probe.accuracies.items() if acc == max(probe.accuracies.values()))
    both = torch.cat([train, val])
    refitted = fit_logistic(features[both], labels[both], 4, probe.l2_reg)
    torch.testing.assert_close(probe.classifier.weight, refitted.weight, rtol=0, atol=1e-5)
    found = probe.metrics(features[test], labels[test])
    assert list(found) == ["probe_acc"]
    right = (probe.classifier.logits(features[test]).argmax(1) == labels[test]).double().mean().item()
    assert (found["probe_acc"].value, found["probe_acc"].chance) == (right, 0.25)
    assert 0.25 < found["probe_acc"].low < right < found["probe_acc"].high


def test_it_is_fitted_within_an_evaluation_too(pictures):
    """Lightning evaluates in inference mode, whose tensors autograd refuses."""
    features, labels = pictures
    expected = fit_logistic(features, labels, 4, 1.0)
    with torch.inference_mode():
        found = fit_logistic(features.double() * 1, labels * 1, 4, 1.0)
    torch.testing.assert_close(found.weight, expected.weight, rtol=0, atol=1e-12)


def test_held_out_rows_are_a_fifth():
    train, chosen = held_out_rows(50, seed=3)
    assert sorted([*train.tolist(), *chosen.tolist()]) == list(range(50))
    assert len(chosen) == 10
    with pytest.raises(ValueError, match="at least two training pictures, got 1"):
        held_out_rows(1)


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
        fit_logistic(**{"features": features, "labels": labels, "num_classes": 4, "l2_reg": 1.0, **change})
    with pytest.raises(ValueError, match="at least one penalty"):
        linear_probe(features, labels, features, labels, 4, l2_regs=[])


@pytest.mark.parametrize("classes", [4, 6])  # of six classes the first five are counted, too
def test_nan_never_helps_and_ties_count_against(pictures, classes):
    features, labels = pictures
    probe = LinearProbe(fit_logistic(features, labels, classes, 1e-2), 1e-2, {})
    whole = probe.metrics(features, labels, num_resamples=10)["probe_acc"].value
    right = probe.classifier.logits(features).argmax(1) == labels
    broken = features.clone()
    broken[::3, 5] = torch.nan
    left = (right & (torch.arange(240) % 3 > 0)).double().mean().item()
    assert 0 < left < whole
    assert probe.metrics(broken, labels, num_resamples=10)["probe_acc"].value == left
    weight = torch.zeros_like(probe.classifier.weight)
    blind = LinearProbe(replace(probe.classifier, weight=weight, bias=weight[0]), 1e-2, {})  # every score is 0
    for bad, of in ((torch.full_like(features, torch.nan), probe), (features, blind)):
        assert {metric.value for metric in of.metrics(bad, labels, num_resamples=10).values()} == {0.0}


def test_a_penalty_whose_scores_are_ties_is_not_chosen(pictures):
    """Features all alike in training tell nothing of classes in equal numbers: accuracy 0, not that of class 0."""
    features, labels = pictures
    same = features[:1].expand(240, -1)
    assert linear_probe(same, labels, same, labels, 4, l2_regs=[1.0]).accuracies == {1.0: 0.0}


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("where", ["train", "val"])
def test_features_that_are_not_finite_are_not_learnt_from(pictures, where, value):
    features, labels = pictures
    broken = features.clone()
    broken[7, 3] = value
    sets = (broken, features) if where == "train" else (features, broken)
    with pytest.raises(ValueError, match=r"finite features .* 1 of 240 rows, first in row 7. Check the network"):
        linear_probe(sets[0], labels, sets[1], labels, 4, l2_regs=[1.0])
