"""Classification metrics: against loops over the definition, torchmetrics, and by hand."""

import math
import random

import pytest
import torch
from sklearn import metrics as sklearn
from torchmetrics.functional.classification import multiclass_confusion_matrix, multiclass_f1_score

from siglightning.evaluation import Predictions, classification_metrics
from siglightning.evaluation.classification import (
    NO_PREDICTION,
    accuracy,
    confusion_matrix,
    label_ranks,
    losses,
    macro_f1,
    majority_share,
    per_class_accuracy,
    top_k_accuracy,
    worst_mistakes,
)


def make(logits, labels):
    logits = torch.as_tensor(logits, dtype=torch.float32)
    names = [f"class {c}" for c in range(logits.shape[1])]
    labels = None if labels is None else torch.as_tensor(labels)
    return Predictions([str(n) for n in range(len(logits))], logits, labels, names)


@pytest.fixture
def predictions():
    """200 pictures, 7 classes of which the last has none, better than chance; some logits are equal."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(6, (200,), generator=generator)
    logits = torch.randn(200, 7, generator=generator)
    logits[torch.arange(200), labels] += 1.0
    logits[::10] = logits[::10].round()
    return make(logits, labels)


def test_numbers_agree_with_loops_over_the_definition(predictions):
    rows = list(zip(predictions.logits.tolist(), predictions.labels.tolist(), strict=True))
    ordered = [sorted(range(7), key=lambda c, row=row: (-row[c], c)) for row, _ in rows]
    right = [order[0] == label for order, (_, label) in zip(ordered, rows, strict=True)]
    assert predictions.classes.tolist() == [order[0] for order in ordered]
    assert accuracy(predictions) == pytest.approx(sum(right) / 200)
    assert label_ranks(predictions).tolist() == [
        o.index(label) + 1 for o, (_, label) in zip(ordered, rows, strict=True)
    ]
    assert (
        top_k_accuracy(predictions, 3) == sum(label in o[:3] for o, (_, label) in zip(ordered, rows, strict=True)) / 200
    )
    expected = [math.log(sum(map(math.exp, row))) - row[label] for row, label in rows]
    torch.testing.assert_close(losses(predictions), torch.tensor(expected, dtype=torch.float64))
    for c, share in enumerate(per_class_accuracy(predictions).tolist()):
        own = [hit for hit, (_, label) in zip(right, rows, strict=True) if label == c]
        assert share == pytest.approx(sum(own) / len(own)) if own else math.isnan(share)
    most = max(sum(label == c for _, label in rows) for c in range(7))
    assert majority_share(predictions) == most / 200


def test_confusion_matrix_and_f1_agree_with_torchmetrics(predictions):
    matrix = confusion_matrix(predictions)
    assert matrix.dtype == torch.int64
    assert torch.equal(matrix, multiclass_confusion_matrix(predictions.classes, predictions.labels, 7))
    assert matrix.trace().item() / 200 == accuracy(predictions)
    expected = multiclass_f1_score(predictions.classes, predictions.labels, 7, average="macro")
    assert macro_f1(matrix).item() == pytest.approx(expected.item(), rel=1e-6)  # theirs is float32
    assert classification_metrics(predictions)["macro_f1"].value == pytest.approx(macro_f1(matrix).item(), rel=1e-12)


def test_measures_agree_with_scikit_learn_in_float64():
    generator = torch.Generator().manual_seed(3)
    labels = torch.randint(6, (300,), generator=generator)  # of the seventh class there are none
    predictions = make(torch.randn(300, 7, generator=generator), labels)
    logits, classes = predictions.logits.double(), predictions.classes
    expected = {
        "acc": sklearn.accuracy_score(labels, classes),
        "acc@5": sklearn.top_k_accuracy_score(labels, logits, k=5, labels=range(7)),
        "macro_f1": sklearn.f1_score(labels, classes, average="macro", zero_division=0),
        "nll": sklearn.log_loss(labels, logits.softmax(1), labels=range(7)),
    }
    found = {name: metric.value for name, metric in classification_metrics(predictions, num_resamples=1).items()}
    assert found == pytest.approx(expected, rel=0, abs=1e-12)
    assert confusion_matrix(predictions).tolist() == sklearn.confusion_matrix(labels, classes, labels=range(7)).tolist()


def test_metrics_have_names_values_chances_and_intervals(predictions):
    metrics = classification_metrics(predictions)
    assert list(metrics) == ["acc", "acc@5", "macro_f1", "nll"]
    assert metrics["acc"].value == pytest.approx(accuracy(predictions))
    assert metrics["acc@5"].value == pytest.approx(top_k_accuracy(predictions, 5))
    assert metrics["nll"].value == pytest.approx(losses(predictions).mean().item())
    assert [metrics[name].chance for name in ("acc", "acc@5", "nll")] == [1 / 7, 5 / 7, math.log(7)]
    for metric in metrics.values():
        assert metric.low < metric.value < metric.high
        assert metric.count == 200
    assert list(classification_metrics(make(torch.eye(5), torch.arange(5)))) == ["acc", "macro_f1", "nll"]


def test_interval_of_f1_agrees_with_resampled_rows(predictions):
    pairs = list(zip(predictions.labels.tolist(), predictions.classes.tolist(), strict=True))
    rng, scores = random.Random(0), []
    for _ in range(2000):
        labels, classes = torch.tensor(rng.choices(pairs, k=200)).unbind(1)
        cells = torch.bincount(labels * 7 + classes, minlength=49).reshape(7, 7)
        scores.append(macro_f1(cells).item())
    scores.sort()
    metric = classification_metrics(predictions, num_resamples=2000)["macro_f1"]
    assert metric.low == pytest.approx(scores[50], abs=0.008)  # two bootstraps of 2,000: the ends' own spread is .003
    assert metric.high == pytest.approx(scores[1950], abs=0.008)


def test_chance_is_what_random_scores_give():
    """Skewed labels, 20,000 pictures: the error of a share is below .004."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.multinomial(torch.tensor([0.6, 0.2, 0.1, 0.05, 0.03, 0.02]), 20_000, True, generator=generator)
    metrics = classification_metrics(make(torch.randn(20_000, 6, generator=generator), labels), num_resamples=1)
    for name in ("acc", "acc@5", "macro_f1"):
        assert metrics[name].value == pytest.approx(metrics[name].chance, abs=0.012)
    flat = classification_metrics(make(torch.zeros(20_000, 6), labels), num_resamples=1)
    assert flat["nll"].value == pytest.approx(flat["nll"].chance)


def test_worst_mistakes_are_wrong_and_sorted_by_loss():
    logits = [[9.0, 0.0, 0.0], [5.0, 0.0, 0.0], [0.0, 9.0, 0.0], [0.0, 1.0, 0.9]]
    predictions = make(logits, [1, 1, 1, 2])
    assert worst_mistakes(predictions, 10) == [0, 1, 3]
    assert worst_mistakes(predictions, 2) == [0, 1]


def test_nan_is_a_prediction_of_nothing_and_never_right():
    predictions = make([[math.nan, 1.0], [2.0, 1.0], [math.nan, math.nan], [-math.inf, 0.0]], [1, 0, 0, 1])
    assert predictions.classes.tolist() == [NO_PREDICTION, 0, NO_PREDICTION, 1]
    assert accuracy(predictions) == 0.5
    assert confusion_matrix(predictions).tolist() == [[1, 0], [0, 1]]
    assert worst_mistakes(predictions, 9) == [0, 2]
    assert per_class_accuracy(predictions).tolist() == [0.5, 0.5]
    metrics = classification_metrics(predictions)
    assert metrics["acc"].value == 0.5
    assert metrics["macro_f1"].value == pytest.approx(2 / 3)  # each class: one right, one of its pictures lost
    assert math.isinf(metrics["nll"].value)


def test_what_cannot_be_judged_is_refused():
    with pytest.raises(ValueError, match=r"labels in 0 \.\.\. 1 for 2 classes, got 0 \.\.\. 2"):
        make([[0.0, 1.0], [1.0, 0.0]], [0, 2])
    with pytest.raises(ValueError, match=r"shape \[2\] or \[2, 2\], got \[3\]"):
        make([[0.0, 1.0], [1.0, 0.0]], [0, 1, 1])
    with pytest.raises(ValueError, match=r"logits \[1, 2\]"):
        Predictions(["a"], torch.zeros(1, 3), None, ["x", "y"])
    with pytest.raises(ValueError, match="a row for each picture"):
        Predictions(["a"], torch.zeros(1, 2), None, ["x", "y"], torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0])
    with pytest.raises(ValueError, match="got none"):
        classification_metrics(make([[0.0, 1.0]], None))
    with pytest.raises(ValueError, match="several for a picture"):
        accuracy(make([[0.0, 1.0]], [[1.0, 1.0]]))
    with pytest.raises(ValueError, match=r"k in 1 \.\.\. 1, got 2"):
        top_k_accuracy(make([[0.0, 1.0]], [0]), 2)
    with pytest.raises(ValueError, match="at least one sample"):
        classification_metrics(make(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)))
