"""Samples to batches: pictures stacked, captions tokenised once for the whole batch."""

from collections.abc import Callable, Sequence
from typing import TypedDict

import torch
from torch import Tensor

from siglightning.batch import Batch


class Sample(TypedDict, total=False):
    """One sample on its way into a batch.

    Attributes:
        image: uint8 ``[3, S, S]``.
        captions: one caption while training, one or more in evaluation.
        label: a class index, or float ``[C]`` multi-hot.
        id: the sample's key in its data set.
        match_id: equal numbers match the same captions.
    """

    image: Tensor
    captions: list[str]
    label: int | Tensor
    id: str | int
    match_id: int


class Collate:
    """Makes a :class:`~siglightning.batch.Batch` of samples that all have the same keys.

    Args:
        tokenizer: captions to int64 ``[T, L]``; ``None`` leaves text out.
    """

    def __init__(self, tokenizer: Callable[[Sequence[str]], Tensor] | None) -> None:
        self.tokenizer = tokenizer

    def __call__(self, samples: Sequence[Sample]) -> Batch:
        """Stacks B samples; captions keep the samples' order, `text_owner` appears when any sample has not one."""
        first = samples[0]
        batch = Batch()
        if "image" in first:
            batch["image"] = torch.stack([sample["image"] for sample in samples])
        if "captions" in first and self.tokenizer is not None:
            batch["text"] = self.tokenizer([caption for sample in samples for caption in sample["captions"]])
            counts = torch.tensor([len(sample["captions"]) for sample in samples])
            if bool((counts != 1).any()):
                batch["text_owner"] = torch.repeat_interleave(counts)
        if "label" in first:
            batch["label"] = _stack([sample["label"] for sample in samples])
        if "id" in first:
            batch["id"] = _ids([sample["id"] for sample in samples])
        if "match_id" in first:
            batch["match_id"] = torch.tensor([sample["match_id"] for sample in samples], dtype=torch.int64)
        return batch


def _stack(labels: Sequence[int | Tensor]) -> Tensor:
    return torch.stack([torch.as_tensor(label) for label in labels])


def _ids(ids: Sequence[str | int]) -> list[str] | Tensor:
    numbers = [key for key in ids if isinstance(key, int)]
    if len(numbers) == len(ids):
        return torch.tensor(numbers, dtype=torch.int64)
    return [str(key) for key in ids]
