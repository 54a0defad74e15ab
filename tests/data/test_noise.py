"""Corrupted samples against a loop over them, on the real pictograms, shared out in any way."""

import numpy as np
import pytest
import torch

from siglightning.batch import InputSpec
from siglightning.data import LabelNoise, PictogramDataModule
from siglightning.data.collate import Collate
from siglightning.data.noise import NoisyDataset
from siglightning.data.sampler import GlobalBatchSampler, SampleKey
from siglightning.models.tokenizers import Tokenizer

TOKENIZER = Tokenizer("clip", 16)


@pytest.fixture(scope="module")
def clean():
    module = PictogramDataModule(global_batch_size=64)
    module.input_spec = InputSpec(32, TOKENIZER)
    module.setup()
    return module.train_set


def taken(dataset, count=120, epoch=0):
    return dataset.__getitems__([SampleKey(index, epoch) for index in range(count)])


def test_pictures_become_uniform_noise_that_stays_for_the_run(clean):
    noisy = NoisyDataset(clean, LabelNoise(["image"], 0.3, seed=4))
    before, after, later = taken(clean), taken(noisy), taken(noisy, epoch=5)
    struck = [not torch.equal(a["image"], b["image"]) for a, b in zip(before, after, strict=True)]
    assert 20 <= sum(struck) <= 52  # 36 of 120 expected, deviation 5
    pixels = torch.cat([sample["image"].flatten() for sample, hit in zip(after, struck, strict=True) if hit]).double()
    counts = torch.bincount(pixels.long(), minlength=256).double()
    expected = len(pixels) / 256
    chi_squared = ((counts - expected) ** 2 / expected).sum()
    assert 150 < chi_squared < 380  # 255 degrees of freedom, deviation 23
    for one, other, hit in zip(after, later, struck, strict=True):
        assert torch.equal(one["image"], other["image"]) == hit
        assert not hit or torch.equal(one["colour"], torch.tensor([1.0, 1.0, 1.0, 0.0]))
        assert one["captions"] == [one["captions"][0]]
    assert [sample["captions"] for sample in before] == [sample["captions"] for sample in after]


def test_texts_become_random_tokens_of_random_length(clean):
    noisy = NoisyDataset(clean, LabelNoise(["text"], 0.5, seed=1))
    before, after = Collate(TOKENIZER)(taken(clean, 400)), Collate(TOKENIZER)(taken(noisy, 400))
    struck = (before["text"] != after["text"]).any(1)
    assert 160 <= int(struck.sum()) <= 240
    assert torch.equal(before["image"], after["image"])
    rows = after["text"][struck]
    lengths = (rows == TOKENIZER.eos_id).int().argmax(1) + 1
    assert (rows == TOKENIZER.eos_id).any(1).all()
    assert set(range(1, 17)) == set(lengths.tolist())
    tokens = torch.cat([row[: n - 1] for row, n in zip(rows, lengths, strict=True)]).double() / TOKENIZER.vocab_size
    assert 0.45 < tokens.mean() < 0.55
    assert tokens.max() > 0.98
    assert (rows[lengths < 16][:, -1] == TOKENIZER.pad_id).all()
    assert len(set(after["match_id"][struck].tolist())) == int(struck.sum())  # nonsense matches nothing else


def test_misaligned_samples_hand_their_captions_round(clean):
    noisy = NoisyDataset(clean, LabelNoise(["alignment"], 0.25, seed=2))
    count = len(clean)
    struck = noisy._partners != np.arange(count)
    assert abs(struck.mean() - 0.25) < 0.02
    assert sorted(noisy._partners) == list(range(count))  # every caption is still there once
    for one, other, index in zip(taken(clean), taken(noisy), range(120), strict=True):
        partner = clean[SampleKey(int(noisy._partners[index]), 0)]
        assert other["captions"] == partner["captions"]
        assert other["match_id"] == partner["match_id"]
        assert torch.equal(torch.as_tensor(other["label"]), torch.as_tensor(partner["label"]))
        assert torch.equal(other["image"], one["image"])
        assert other["id"] == one["id"]


@pytest.mark.parametrize(
    "kinds", [["image"], ["text"], ["alignment"], ["image", "text"], ["image", "text", "alignment"]]
)
def test_any_number_of_processes_sees_the_same_corruption(clean, kinds):
    noisy = NoisyDataset(clean, LabelNoise(kinds, 0.4))
    collate = Collate(TOKENIZER)

    def second_batch(world_size):
        samplers = [GlobalBatchSampler(len(clean), 12, rank, world_size, seed=3) for rank in range(world_size)]
        keys = [key for sampler in samplers for key in list(sampler)[1]]
        shares = [keys[first : first + 12 // world_size] for first in range(0, 12, 12 // world_size)]
        return [collate(noisy.__getitems__(share)) for share in shares]

    whole = second_batch(1)[0]
    for world_size in (2, 3, 4):
        shares = second_batch(world_size)
        for name in ("image", "text", "match_id"):
            assert torch.equal(torch.cat([share[name] for share in shares]), whole[name])
    clean_batch = collate(clean.__getitems__(list(GlobalBatchSampler(len(clean), 12, seed=3))[1]))
    assert torch.equal(whole["image"], clean_batch["image"]) == ("image" not in kinds)


def test_kinds_strike_independently(clean):
    index = np.arange(5000)
    noise = LabelNoise(["image", "text"], 0.5)
    image, text = noise.struck("image", index), noise.struck("text", index)
    assert abs((image & text).mean() - 0.25) < 0.03
    assert not noise.struck("alignment", index).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"corrupt": ["images"], "probability": 0.1}, "must be some of image, text, alignment, got"),
        ({"corrupt": [], "probability": 0.1}, "must be some of"),
        ({"corrupt": ["text"], "probability": 10}, "must lie between 0 and 1, got 10"),
    ],
)
def test_wrong_noise_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        LabelNoise(**options)
