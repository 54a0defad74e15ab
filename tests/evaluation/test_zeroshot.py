"""Zero-shot classification against loops in Python floats."""

import math

import pytest
import torch
from torch.nn.functional import normalize

from siglightning.evaluation import (
    DEFAULT_TEMPLATES,
    TEMPLATES,
    Predictions,
    class_embeddings,
    fill_templates,
    first_of_name,
    metrics_of_predictions,
    templates_of,
    zeroshot_metrics,
    zeroshot_ranks,
)

LETTERS = "abcdefghijklmnopqrstuvwxyz {}.'"


def encode_letters(texts: list[str]) -> torch.Tensor:
    """A text encoder that can be followed by hand: counts of letters, not of unit length."""
    return torch.tensor([[float(text.count(letter)) for letter in LETTERS] for text in texts], dtype=torch.float64)


def unit(row: list[float]) -> list[float]:
    length = math.sqrt(sum(x * x for x in row))
    return [x / length for x in row]


@pytest.mark.parametrize("batch_size", [1, 4, 256])
def test_class_embedding_is_the_normalised_mean_of_unit_prompts(batch_size):
    names, templates = ["cat", "zebra", "mule"], ["a {}", "{}", "this is {}, a picture"]
    got = class_embeddings(names, encode_letters, templates, batch_size)
    for row, name in zip(got.tolist(), names, strict=True):
        prompts = [unit(encode_letters([template.replace("{}", name)])[0].tolist()) for template in templates]
        assert row == pytest.approx(unit([sum(column) / 3 for column in zip(*prompts, strict=True)]), abs=1e-12)


def test_encoder_never_sees_more_than_a_batch():
    sizes = []

    def encode(texts):
        sizes.append(len(texts))
        return encode_letters(texts)

    class_embeddings(["cat", "dog", "mule"], encode, DEFAULT_TEMPLATES, batch_size=4)
    assert sizes == [4, 2]


def test_accuracy_equals_loop_with_ties_against_us():
    g = torch.Generator().manual_seed(0)
    images = torch.randint(-1, 2, (50, 3), generator=g).double()
    classes = torch.randint(-1, 2, (7, 3), generator=g).double()
    labels = torch.randint(7, (50,), generator=g)
    top1 = top5 = 0
    for image, label in zip(images.tolist(), labels.tolist(), strict=True):
        scores = [sum(a * b for a, b in zip(image, row, strict=True)) for row in classes.tolist()]
        ahead = sum(score >= scores[label] for c, score in enumerate(scores) if c != label)
        top1, top5 = top1 + (ahead < 1), top5 + (ahead < 5)
    got = zeroshot_metrics(images, classes, labels, chunk_size=16)
    assert (got["zeroshot_acc"].value, got["zeroshot_acc@5"].value) == pytest.approx((top1 / 50, top5 / 50))
    assert (got["zeroshot_acc"].chance, got["zeroshot_acc@5"].chance) == pytest.approx((1 / 7, 5 / 7))
    assert got["zeroshot_acc"].low < got["zeroshot_acc"].value < got["zeroshot_acc"].high
    assert got["zeroshot_acc"].count == 50


def test_top_five_of_five_classes_says_nothing_and_is_left_out():
    found = zeroshot_metrics(torch.eye(5), torch.eye(5), torch.arange(5))
    assert list(found) == ["zeroshot_acc", "zeroshot_class_acc"]


def test_images_of_one_class_count_one_by_one():
    """Many images share a label; each is a sample of its own for the interval."""
    images = normalize(torch.randn(400, 6, generator=torch.Generator().manual_seed(1)), dim=1)
    got = zeroshot_metrics(images, torch.eye(6), torch.zeros(400, dtype=torch.int64))["zeroshot_acc"]
    expected = 2 * 1.96 * math.sqrt(got.value * (1 - got.value) / 400)
    assert got.high - got.low == pytest.approx(expected, rel=0.15)


def test_templates_are_filled_and_checked():
    assert fill_templates("a {red} box", ["{}!", "see {}"]) == ["a {red} box!", "see a {red} box"]
    for templates, message in (([], "at least one prompt"), (["a photo"], "got 'a photo'"), (["{} {}"], "once")):
        with pytest.raises(ValueError, match=message):
            fill_templates("cat", templates)


def test_misuse_is_explained():
    with pytest.raises(ValueError, match="'cat' more than once"):
        class_embeddings(["cat", "dog", "cat"], encode_letters)
    with pytest.raises(ValueError, match="needs class names"):
        class_embeddings([], encode_letters)
    with pytest.raises(ValueError, match=r"labels in 0 ... 2 for 3 classes, got 0 ... 3"):
        zeroshot_metrics(torch.eye(4), torch.ones(3, 4), torch.arange(4))
    for labels in (torch.arange(4.0), torch.arange(4) > 1):
        with pytest.raises(ValueError, match=rf"integer labels \[4\] or multi-hot \[4, 3\], got {labels.dtype} \[4\]"):
            zeroshot_metrics(torch.eye(4), torch.ones(3, 4), labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_labels_of_every_integer_type_are_the_same(dtype):
    images, classes = torch.eye(200), torch.eye(200).roll(1, 0)
    labels = torch.arange(200).roll(-1)
    labels[:100] = 150  # wrong, and twice that is no byte
    expected = zeroshot_metrics(images, classes, labels, num_resamples=5)
    assert expected["zeroshot_acc"].value == 0.5
    assert zeroshot_metrics(images, classes, labels.to(dtype), num_resamples=5) == expected


def test_predictions_are_the_same_answers():
    generator = torch.Generator().manual_seed(2)
    images, classes = (normalize(torch.randn(n, 8, generator=generator)) for n in (40, 6))
    labels = torch.randint(6, (40,), generator=generator)
    names = [f"class {c}" for c in range(6)]
    logits = 20 * images @ classes.T
    found = metrics_of_predictions(Predictions([str(i) for i in range(40)], logits, labels, names), 20.0)
    assert found == zeroshot_metrics(images, classes, labels)
    with pytest.raises(ValueError, match="needs labels, got none for 40 pictures"):
        metrics_of_predictions(Predictions([str(i) for i in range(40)], logits, None, names), 20.0)


def several_labels(rows, classes, generator):
    """None to three labels a picture."""
    labels = torch.zeros(rows, classes)
    for row in range(rows):
        labels[row, torch.randperm(classes, generator=generator)[: row % 4]] = 1.0
    return labels


def test_with_several_labels_any_of_them_is_right():
    """The rule of ImageNet-ReaL: pictures without labels are left out, and the best class may be any of the labels."""
    g = torch.Generator().manual_seed(3)
    images, classes = (normalize(torch.randn(n, 5, generator=g, dtype=torch.float64)) for n in (60, 9))
    labels = several_labels(60, 9, g)
    top1 = top5 = count = 0
    chance1 = chance5 = 0.0
    for image, own in zip(images.tolist(), labels.tolist(), strict=True):
        true = [c for c in range(9) if own[c]]
        if not true:
            continue
        scores = [sum(a * b for a, b in zip(image, row, strict=True)) for row in classes.tolist()]
        order = sorted(range(9), key=lambda c: -scores[c])
        top1, top5 = top1 + (order[0] in true), top5 + any(c in true for c in order[:5])
        chance1 += len(true) / 9
        chance5 += 1 - math.comb(9 - len(true), 5) / math.comb(9, 5)
        count += 1
    got = zeroshot_metrics(images, classes, labels, chunk_size=7)
    assert list(got) == ["zeroshot_acc", "zeroshot_acc@5"]
    assert (got["zeroshot_acc"].value, got["zeroshot_acc@5"].value) == pytest.approx((top1 / 45, top5 / 45), abs=1e-12)
    chances = (got["zeroshot_acc"].chance, got["zeroshot_acc@5"].chance)
    assert chances == pytest.approx((chance1 / count, chance5 / count), abs=1e-12)
    assert got["zeroshot_acc"].count == count == 45


def test_accuracies_are_those_of_torchmetrics_and_scikit_learn():
    from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score
    from torchmetrics.functional.classification import multiclass_stat_scores

    g = torch.Generator().manual_seed(4)
    images, classes = (normalize(torch.randn(n, 6, generator=g, dtype=torch.float64)) for n in (300, 8))
    labels = torch.randint(8, (300,), generator=g).clamp(max=6)  # the last class has no pictures
    scores = images @ classes.T
    got = {name: value.value for name, value in zeroshot_metrics(images, classes, labels).items()}
    # of torchmetrics the counts: it divides in fp32
    right = [multiclass_stat_scores(scores, labels, 8, average="micro", top_k=k)[0].item() for k in (1, 5)]
    assert [got["zeroshot_acc"], got["zeroshot_acc@5"]] == pytest.approx([hits / 300 for hits in right], abs=1e-12)
    theirs = [top_k_accuracy_score(labels, scores, k=k, labels=range(8)) for k in (1, 5)]
    assert [got["zeroshot_acc"], got["zeroshot_acc@5"]] == pytest.approx(theirs, abs=1e-12)
    balanced = balanced_accuracy_score(labels, scores.argmax(1))
    assert got["zeroshot_class_acc"] == pytest.approx(balanced, abs=1e-12)


def test_equal_class_names_are_answered_by_the_first_as_argmax_does():
    """ImageNet has ``missile`` and ``sunglasses`` twice: half of their pictures can never be right, anywhere."""
    names = ["cat", "missile", "dog", "missile", "owl", "missile"]
    embeds = class_embeddings(names, encode_letters, ["a {}", "{}"], allow_repeated=True)
    assert torch.equal(embeds[1], embeds[3])
    g = torch.Generator().manual_seed(5)
    labels = torch.randint(6, (200,), generator=g)
    images = normalize(embeds[labels] + 0.3 * torch.randn(200, embeds.shape[1], generator=g, dtype=torch.float64))
    logits = images @ embeds.T
    argmax = (logits.argmax(1) == labels).double().mean().item()
    twins = first_of_name(names)
    assert twins == [0, 1, 2, 1, 4, 1]
    assert (zeroshot_ranks(logits, labels, 1e-9, twins) <= 1).double().mean().item() == argmax
    assert (zeroshot_ranks(logits, labels, 1e-9) <= 1).double().mean().item() < argmax  # against us, without the names
    several = torch.zeros(3, 6)
    several[0, 1] = several[1, 3] = several[2, [1, 3]] = 1  # the first, the later one, both: best is column 1
    assert zeroshot_ranks(embeds[[1, 1, 1]] @ embeds.T, several, 1e-9, twins).tolist() == [1, 2, 1]
    found = metrics_of_predictions(Predictions([str(i) for i in range(200)], logits, labels, names), 1.0)
    assert found["zeroshot_acc"].value == argmax


def test_published_example_of_big_vision():
    """Its discriminative_classifier_test: class c of five at angle c / 10, each picture at its class's angle."""

    def encode(prompts):
        angles = torch.tensor([float(prompt.rpartition("_")[2]) for prompt in prompts], dtype=torch.float64) / 10
        return torch.stack([angles.cos(), angles.sin()], dim=1)

    classes = class_embeddings([f"test_class_{i}" for i in range(5)], encode, ["test prompt 1 {}", "test prompt 2 {}"])
    labels = torch.arange(5).repeat(4)
    found = zeroshot_metrics(encode([f"test_class_{i}" for i in labels.tolist()]), classes, labels)
    assert found["zeroshot_acc"].value == 1.0
    averaged = class_embeddings(["x"], lambda prompts: torch.tensor([[2.0, 2.0]], dtype=torch.float64), ["{}"])
    torch.testing.assert_close(averaged, torch.full((1, 2), 2**-0.5, dtype=torch.float64))


def test_templates_have_names():
    """Numbers of templates are those of the CLIP paper's evaluation; every one can be filled."""
    counts = {"names": 1, "photo": 1, "imagenet": 80, "imagenet_simple": 7, "cifar": 18, "pets": 1}
    assert {name: len(templates_of(name)) for name in TEMPLATES} == counts
    for name in TEMPLATES:
        prompts = fill_templates("tench", templates_of(name))
        assert len(set(prompts)) == counts[name]
        assert all("tench" in prompt for prompt in prompts)
    assert "itap of a tench." in fill_templates("tench", templates_of("imagenet_simple"))
    assert templates_of("cifar")[:2] == ["a photo of a {}.", "a blurry photo of a {}."]
    assert templates_of("cifar")[-1] == "a photo of the big {}."
    assert templates_of("a {} seen from above") == ["a {} seen from above"]
    with pytest.raises(ValueError, match=r"one of the names names, photo, imagenet, .* got 'imagnet'"):
        templates_of("imagnet")
