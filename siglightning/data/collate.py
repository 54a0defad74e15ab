"""Samples to batches: pictures stacked, captions tokenised once for the whole batch."""

from collections.abc import Callable, Sequence
from typing import Any, TypedDict

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import default_collate

from siglightning.batch import Batch
from siglightning.data.draws import uniform


class Sample(TypedDict, total=False):
    """One sample on its way into a batch.

    Attributes:
        image: uint8 ``[3, S, S]``.
        colour: float32 ``[4]``, see :func:`siglightning.data.colour.recolour`.
        captions: one caption while training, one or more in evaluation.
        random_text: (seed, number) of random tokens in the place of the caption's.
        label: a class index, or float ``[C]`` multi-hot.
        id: the sample's key in its data set.
        match_id: equal numbers match the same captions.
        image_embed: float ``[d]``, features of the picture, made before.
        text_embed: float ``[captions, d]``, features of the captions, made before.
    """

    image: Tensor
    colour: Tensor
    captions: list[str]
    random_text: tuple[int, int]
    label: int | Tensor
    id: str | int
    match_id: int
    image_embed: Tensor
    text_embed: Tensor


class LoadedBatch(Batch, total=False):
    """A batch as it leaves a loading process; the data module uses up what it adds, and tasks never see it.

    Attributes:
        colour: float32 ``[B, 4]``, to be applied on the device.
        truncated: captions of this batch that were longer than the context.
    """

    colour: Tensor
    truncated: int


class Collate:
    """Makes a batch of samples that all have the same keys.

    Args:
        tokenizer: captions to int64 ``[T, L]``; ``None`` leaves text out.
    """

    def __init__(self, tokenizer: Callable[[Sequence[str]], Tensor] | None) -> None:
        self.tokenizer = tokenizer

    def __call__(self, samples: Sequence[Sample]) -> LoadedBatch:
        """Stacks B samples; captions keep the samples' order, `text_owner` appears when any sample has not one."""
        first = samples[0]
        batch = LoadedBatch()
        if "image" in first:
            # torch's own: in a loading process it stacks into shared memory, which saves a copy on the way out.
            batch["image"] = default_collate([sample["image"] for sample in samples])
        if "colour" in first:
            batch["colour"] = torch.stack([sample["colour"] for sample in samples])
        if "image_embed" in first:
            batch["image_embed"] = torch.stack([sample["image_embed"] for sample in samples])
        if "text_embed" in first:
            batch["text_embed"] = torch.cat([sample["text_embed"] for sample in samples])
        if "captions" in first and self.tokenizer is not None:
            self._add_text(batch, samples)
        if "label" in first:
            batch["label"] = _stack([sample["label"] for sample in samples])
        if "id" in first:
            batch["id"] = _ids([sample["id"] for sample in samples])
        if "match_id" in first:
            batch["match_id"] = torch.tensor([sample["match_id"] for sample in samples], dtype=torch.int64)
        return batch

    def _add_text(self, batch: LoadedBatch, samples: Sequence[Sample]) -> None:
        assert self.tokenizer is not None
        before = getattr(self.tokenizer, "truncated", 0)
        batch["text"] = self.tokenizer([caption for sample in samples for caption in sample["captions"]])
        batch["truncated"] = getattr(self.tokenizer, "truncated", 0) - before
        for row, sample in enumerate(samples):  # noise is for training, where captions and samples have the same rows
            if "random_text" in sample:
                batch["text"][row] = _random_tokens(self.tokenizer, batch["text"].shape[1], *sample["random_text"])
        counts = torch.tensor([len(sample["captions"]) for sample in samples])
        if bool((counts != 1).any()):
            batch["text_owner"] = torch.repeat_interleave(counts)


def _random_tokens(tokenizer: Any, length: int, seed: int, number: int) -> Tensor:
    """One to `length` random ids, closed and padded as a caption is; int64 ``[length]``."""
    if not hasattr(tokenizer, "vocab_size"):
        raise ValueError("Noise on texts needs a tokenizer that tells its `vocab_size` and `pad_id`.")
    draws = uniform("noise", seed, 2, np.array([number]), length + 1)[0]
    count = 1 + int(draws[0] * length)
    ids = torch.full((length,), tokenizer.pad_id)
    ids[:count] = torch.from_numpy((draws[1 : count + 1] * tokenizer.vocab_size).astype(np.int64))
    if tokenizer.eos_id is not None:
        ids[count - 1] = tokenizer.eos_id
    return ids


def _stack(labels: Sequence[int | Tensor]) -> Tensor:
    return torch.stack([torch.as_tensor(label) for label in labels])


def _ids(ids: Sequence[str | int]) -> list[str] | Tensor:
    numbers = [key for key in ids if isinstance(key, int)]
    if len(numbers) == len(ids):
        return torch.tensor(numbers, dtype=torch.int64)
    return [str(key) for key in ids]
