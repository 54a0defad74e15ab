"""Samples to batches."""

import torch

from siglightning.data import Collate, Sample


def lengths(captions):
    return torch.tensor([[len(caption)] for caption in captions])


def image(value):
    return torch.full((3, 2, 2), value, dtype=torch.uint8)


def test_one_caption_each_needs_no_owner():
    batch = Collate(lengths)([Sample(image=image(i), captions=["x" * i], id=f"n{i}", match_id=i - 3) for i in (2, 5)])
    assert batch["image"].dtype == torch.uint8
    assert batch["image"][:, 0, 0, 0].tolist() == [2, 5]
    assert batch["text"].tolist() == [[2], [5]]
    assert batch["id"] == ["n2", "n5"]
    assert batch["match_id"].tolist() == [-1, 2]
    assert "text_owner" not in batch
    assert "label" not in batch


def test_several_captions_know_their_picture():
    samples = [Sample(captions=captions) for captions in (["a", "bb"], ["ccc"], ["d", "ee", "fff"])]
    batch = Collate(lengths)(samples)
    assert batch["text"].flatten().tolist() == [1, 2, 3, 1, 2, 3]
    assert batch["text_owner"].tolist() == [0, 0, 1, 2, 2, 2]


def test_captions_are_tokenised_in_one_call():
    calls = []
    Collate(lambda captions: calls.append(list(captions)) or lengths(captions))(
        [Sample(captions=["a"]), Sample(captions=["b"])]
    )
    assert calls == [["a", "b"]]


def test_a_model_without_text_gets_none():
    assert Collate(None)([Sample(captions=["a"], id=3), Sample(captions=["b"], id=2**40)]).keys() == {"id"}


def test_labels_are_classes_or_vectors_and_ids_numbers_or_strings():
    classes = Collate(None)([Sample(label=3, id=7), Sample(label=0, id=2**40)])
    assert classes["label"].dtype == torch.int64
    assert classes["label"].tolist() == [3, 0]
    assert classes["id"].tolist() == [7, 2**40]
    vectors = Collate(None)([Sample(label=torch.tensor([0.0, 1.0])), Sample(label=torch.tensor([1.0, 1.0]))])
    assert vectors["label"].dtype == torch.float32
    assert vectors["label"].tolist() == [[0, 1], [1, 1]]
