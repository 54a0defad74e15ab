"""What is drawn of a classifier's answers: real ones of a small classifier, and made ones whose picture is known."""

import json
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image
from small_classifier import SmallClassifier, pictograms, trainer_in
from torch import nn

from siglightning.callbacks import ModelRecord, SampleWriter
from siglightning.callbacks.cards import cards_of, draw_card, draw_cards
from siglightning.callbacks.confusion import draw_confusion
from siglightning.callbacks.curves import GREY
from siglightning.callbacks.grid import RIGHT, WRONG
from siglightning.callbacks.model_record import model_name
from siglightning.evaluation import Predictions
from siglightning.evaluation.classification import confusion_matrix, ranked_examples
from siglightning.models import ImageEncoder

NAMES = ["cat", "dog", "a very long name of a class that ends far away"]


def made(labels=(0, 1, 2), num_drawn=None):
    """Row 0 is right, row 1 is confidently wrong, row 2 is wrong by NaN."""
    logits = torch.tensor([[3.0, 0.0, 0.0], [0.0, -1.0, 2.0], [math.nan, 0.0, 0.0]])
    images = torch.full((3, 3, 8, 8), 0, dtype=torch.uint8)
    images += torch.tensor([50, 120, 200], dtype=torch.uint8)[:, None, None, None]
    labels = None if labels is None else torch.tensor(labels)
    return Predictions(["a", "b", "c"], logits, labels, NAMES, images, [0, 1, 2], num_drawn)


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"))


def count(picture, colour):
    """Pixels of a colour such as ``#00724F``."""
    return int((picture == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(-1).sum())


def test_cards_tell_truth_prediction_and_share():
    right, wrong, nan = cards_of(made(), [0, 1, 2])
    assert (right.colour, wrong.colour, nan.colour) == (RIGHT, WRONG, WRONG)
    assert right.lines == ["GT: cat", f"✓ cat {math.exp(3) / (math.exp(3) + 2):.0%}"]
    assert wrong.lines[0] == "GT: dog"
    assert wrong.lines[1].startswith("✗ a very long name")
    assert wrong.lines[1].endswith("… 84%")
    assert max(map(len, [*wrong.lines, *nan.lines])) <= 24
    assert nan.lines[1] == "✗ nothing (NaN) 0%"
    unknown = cards_of(made(labels=None), [0])[0]
    assert (unknown.colour, unknown.lines) == (GREY, ["cat 91%"])


def test_one_card_is_green_or_red_and_shows_the_picture(tmp_path):
    for row, colour, other in ((0, RIGHT, WRONG), (1, WRONG, RIGHT)):
        draw_card(cards_of(made(), [row])[0], tmp_path / "card.png")
        drawn = pixels(tmp_path / "card.png")
        assert count(drawn, colour) > 1000  # the frame alone has 4 x 450 x 8
        assert count(drawn, other) == 0
        grey = 50 if row == 0 else 120
        assert count(drawn, f"#{grey:02X}{grey:02X}{grey:02X}") > 100_000


def test_a_page_has_every_card_at_its_place(tmp_path):
    cards = cards_of(made(), [0] * 6 + [1])
    draw_cards(cards, "猫 $_^", tmp_path / "page.png")
    drawn = pixels(tmp_path / "page.png")
    height = drawn.shape[0] // 2
    assert count(drawn[:height], RIGHT) > 0
    assert count(drawn[:height], WRONG) == 0
    assert count(drawn[height:], RIGHT) == 0
    assert count(drawn[height:, : drawn.shape[1] // 6], WRONG) > 0
    assert count(drawn[height:, drawn.shape[1] // 3 :], WRONG) == 0


@pytest.fixture
def saved(monkeypatch):
    """The figures saved in the test, whose artists can be read."""
    figures = []
    save = Figure.savefig
    monkeypatch.setattr(Figure, "savefig", lambda self, path: (figures.append(self), save(self, path))[1])
    return figures


@pytest.mark.parametrize("classes", [15, 51, 100])
def test_confusion_matrix_is_normalised_by_row_and_names_can_be_read(classes, saved, tmp_path):
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randint(0, 4, (classes, classes), generator=generator)
    matrix[3] = 0  # a class without pictures
    draw_confusion(matrix, [f"class {i}" for i in range(classes)], "title", tmp_path / "confusion.png")
    axes = saved[0].axes[0]
    shown = axes.images[0].get_array()
    sums = matrix.sum(1, keepdim=True).numpy()
    np.testing.assert_allclose(shown, matrix.numpy() / np.maximum(sums, 1))
    assert [label.get_text() for label in axes.get_yticklabels()] == [
        f"class {i} ({total})" for i, total in enumerate(sums[:, 0])
    ]
    counts = {(text.get_position(), text.get_text()) for text in axes.texts}
    filled = {((column, row), str(int(matrix[row, column]))) for row, column in matrix.nonzero().tolist()}
    assert counts == (filled if classes == 15 else set())
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert all(upper.y0 >= lower.y1 - 2 for upper, lower in pairwise(boxes))  # pixels: names do not overlap
    assert boxes[0].height >= 10


def test_rankings_are_of_pictures_from_all_over_the_set():
    predictions = made(num_drawn=2)
    assert predictions.drawn_rows(1) == [0]
    assert predictions.drawn_rows(9) == [0, 1]
    first, second = ranked_examples(predictions, 9, top=2)
    assert first.captions[0] == "91% cat"
    assert (first.truth, first.correct) == ("cat", [True, False])
    assert second.correct == [False, False]


@pytest.fixture(scope="module")
def tested(tmp_path_factory):
    """A run that was trained for an epoch, tested, and tested again."""
    folder = tmp_path_factory.mktemp("tested")
    data, task = pictograms(), SmallClassifier()
    trainer = trainer_in(folder, [SampleWriter(num_samples=5), ModelRecord()], max_epochs=1)
    trainer.fit(task, datamodule=data)
    assert not (folder / "samples").exists()  # validation within training draws nothing
    for _ in range(2):
        trainer.test(task, datamodule=data, verbose=False)
    return folder, task


def test_a_test_leaves_annotated_pictures_and_pages(tested):
    folder, task = tested
    predictions = task.predictions["seen_concepts"]
    pictures = sorted((folder / "samples" / "SmallClassifier" / "seen_concepts").iterdir())
    rows = predictions.drawn_rows(5)
    assert len(pictures) == len(rows) == 5
    for number, (row, path) in enumerate(zip(rows, pictures, strict=True), start=1):
        label = int(predictions.labels[row])
        is_right = int(predictions.logits[row].argmax()) == label
        word = predictions.class_names[label].replace(" ", "_")
        assert path.name == f"{number:02}_{'right' if is_right else 'wrong'}_{word}.png"
        assert (count(pixels(path), RIGHT) > 0) == is_right
    assert (folder / "samples" / "SmallClassifier" / "seen_concepts.png").is_file()
    assert {path.name for path in (folder / "figures").iterdir()} == {
        f"{kind}_seen_concepts.png" for kind in ("confusion", "worst_mistakes", "ranked")
    }
    assert count(pixels(folder / "figures" / "worst_mistakes_seen_concepts.png"), RIGHT) == 0
    assert confusion_matrix(predictions).sum() == len(predictions.ids)


def test_the_model_is_recorded(tested):
    assert json.loads((tested[0] / "model.json").read_text()) == {
        "task": "SmallClassifier", "model": "SmallClassifier", "parameters": 8 * (3 * 12**2 + 1),
        "trained": 8 * (3 * 12**2 + 1), "classes": 8, "text": None,
    }  # fmt: skip


def test_a_models_name_is_a_folders_name():
    task = SmallClassifier()
    task.network = ImageEncoder("local:conv", image_size=32)
    assert model_name(task) == "conv"
    for name, expected in {
        "hf:google/siglip-base-patch16-224": "siglip-base-patch16-224", "timm:vit_b.augreg": "vit_b.augreg",
        "hf:/data/my model/": "my_model", "hf:../..": "SmallClassifier", "open_clip:" + "x" * 99: "x" * 60,
    }.items():  # fmt: skip
        task.network.image_tower.name = name
        assert model_name(task) == expected
    task.network = nn.Identity()
    assert model_name(task) == "SmallClassifier"


def test_negative_numbers_are_refused():
    with pytest.raises(ValueError, match="at least 0, got -1 and 24"):
        SampleWriter(num_samples=-1)
