"""Accuracy by class against counting, for one label a picture and for several."""

import math
from collections import Counter

import pytest
import torch
from sklearn.metrics import recall_score

from siglightning.evaluation import Predictions, per_class_results

NAMES = ["cat", "dog", "owl", "yak", "zebra"]


def drawn(labels):
    logits = torch.randn(len(labels), 5, generator=torch.Generator().manual_seed(1))
    logits[7, 2] = math.nan
    return Predictions([str(i) for i in range(len(labels))], logits, labels, NAMES)


def test_one_label_a_picture():
    labels = torch.randint(4, (120,), generator=torch.Generator().manual_seed(0))  # of zebras there are none
    found = drawn(labels)
    results = per_class_results(found)
    assert [result.name for result in results] == NAMES
    for number, result in enumerate(results):
        rows = [row for row, label in enumerate(labels.tolist()) if label == number]
        wrong = Counter(int(found.classes[row]) for row in rows if found.classes[row] not in (number, -1))
        assert (result.count, result.right) == (len(rows), sum(int(found.classes[row]) == number for row in rows))
        assert result.confused_count == max(wrong.values(), default=0)
        assert not wrong or wrong[NAMES.index(result.confused_with)] == result.confused_count
    theirs = recall_score(labels, found.classes, labels=range(4), average=None, zero_division=0)
    assert [result.accuracy for result in results[:4]] == pytest.approx(theirs.tolist(), abs=1e-12)
    assert math.isnan(results[4].accuracy)
    assert (results[4].confused_with, results[4].confused_count) == ("", 0)
    assert math.isnan(results[4].low)


def test_interval_is_that_of_a_share():
    """Of 100 pictures 30 are right: the normal approximation, .3 plus or minus .09, is good to a hundredth."""
    logits = torch.zeros(100, 2)
    logits[:30, 1] = 1
    found = Predictions([str(i) for i in range(100)], logits, torch.ones(100, dtype=torch.int64), ["a", "b"])
    result = per_class_results(found, num_resamples=4000)[1]
    half = 1.96 * math.sqrt(0.3 * 0.7 / 100)
    assert (result.low, result.high) == pytest.approx((0.3 - half, 0.3 + half), abs=0.015)


def test_several_labels_a_picture():
    generator = torch.Generator().manual_seed(2)
    labels = (torch.rand(90, 5, generator=generator) < 0.3).float()
    found = drawn(labels)
    for number, result in enumerate(per_class_results(found)):
        rows = [row for row in range(90) if labels[row, number]]
        right = [row for row in rows if found.classes[row] >= 0 and labels[row, found.classes[row]]]
        assert (result.count, result.right) == (len(rows), len(right))


def test_without_labels():
    unlabelled = Predictions(["1"], torch.zeros(1, 5), None, NAMES)
    with pytest.raises(ValueError, match="needs labels, got none for 1 pictures"):
        per_class_results(unlabelled)
