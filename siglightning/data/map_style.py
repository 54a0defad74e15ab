"""Samples of a source, ready for a batch: decoded, augmented with one caption drawn, or resized with all of them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from siglightning.data.bad_samples import BadSampleLog
from siglightning.data.base import SampleDataset, as_keys
from siglightning.data.collate import Sample
from siglightning.data.draws import uniform
from siglightning.data.images import BadSampleError, ImageLimits, decode
from siglightning.data.matching import match_number
from siglightning.data.sampler import SampleKey
from siglightning.data.sources.base import RawSample, Source
from siglightning.data.transforms import Augmentation, augment, resize

_MAX_CHARACTERS = 10_000  # of a caption; no context is as long, and tokenizers slow down with length
_MAX_SUBSTITUTES = 100


@dataclass(frozen=True)
class Preparation:
    """What is done to every sample of a set.

    Attributes:
        image_size: side of the pictures handed out, in pixels.
        templates: sentences with ``{}`` in the place of a class, where a sample has labels and no captions.
        augmentation: how pictures vary; ``None`` prepares for evaluation.
        seed: of the run, for augmentation and the choice of captions.
        limits: of the size of pictures.
    """

    image_size: int
    templates: Sequence[str] = ("a photo of a {}.",)
    augmentation: Augmentation | None = None
    seed: int = 0
    limits: ImageLimits = field(default_factory=ImageLimits)


class MapDataset(SampleDataset):
    """Some rows of a source.

    A sample that cannot be used is replaced by the next one that can, so that batches keep their size; which one that
    is depends on the data alone.

    Args:
        source: where samples come from.
        rows: int64, positions in the source.
        preparation: what is done to them.
        log: takes down what cannot be used.
    """

    def __init__(
        self, source: Source, rows: NDArray[np.int64], preparation: Preparation, log: BadSampleLog | None = None
    ) -> None:
        self.source, self.rows, self.preparation = source, rows, preparation
        self.log = log or BadSampleLog(None, 0.0)
        self._words = [name.replace("_", " ").strip() for name in source.class_names]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> list[Sample]:
        """Samples of one epoch. ``match_id`` stands for the caption's subject, in evaluation for all captions."""
        full_keys = as_keys(keys)
        epochs = {key.epoch for key in full_keys}
        if len(epochs) > 1:
            raise ValueError(f"A batch must lie in one epoch, got {sorted(epochs)}.")
        epoch, index = epochs.pop(), np.array([key.sample for key in full_keys], dtype=np.int64)
        loaded = [self._load(sample) for sample in index.tolist()]
        images = self._images([image for _, _, image in loaded], epoch, index)
        draws = uniform("caption", self.preparation.seed, epoch, index, 2)
        return [
            self._sample(row, raw, image, numbers)
            for (row, raw, _), image, numbers in zip(loaded, images, draws, strict=True)
        ]

    def _load(self, sample: int) -> tuple[int, RawSample, Tensor]:
        """Row, content and pixels of a sample, or of the next one that has any."""
        for step in range(min(_MAX_SUBSTITUTES, len(self.rows))):
            row = int(self.rows[(sample + step) % len(self.rows)])
            try:
                raw = self.source.read(row)
                image = decode(raw.image, self.preparation.limits)
            except BadSampleError as error:
                self.log.bad(self.source.key(row), error)
            except Exception as error:
                raise RuntimeError(f"Sample {row} of the data ({self.source.key(row)}) failed: {error!r}") from error
            else:
                self.log.good()
                return row, raw, image
        raise ValueError(
            f"None of the {_MAX_SUBSTITUTES} samples from {self.source.key(int(self.rows[sample]))} on can be used: "
            f"{dict(self.log.reasons)}."
        )

    def _images(self, images: Sequence[Tensor], epoch: int, index: NDArray[np.int64]) -> Tensor:
        want = self.preparation
        if want.augmentation is None:
            return resize(images, want.image_size)
        return augment(images, want.image_size, want.augmentation, seed=want.seed, epoch=epoch, index=index)

    def _sample(self, row: int, raw: RawSample, image: Tensor, numbers: NDArray[np.float64]) -> Sample:
        sample = Sample(image=image, id=self.source.key(row))
        captions, subjects = self._captions(raw, numbers)
        if captions:
            sample["captions"] = [caption[:_MAX_CHARACTERS] for caption in captions]
            sample["match_id"] = match_number("\0".join(subjects))
        if self.source.class_names:
            sample["label"] = raw.labels[0] if self.source.one_label else self._multi_hot(raw)
        return sample

    def _captions(self, raw: RawSample, numbers: NDArray[np.float64]) -> tuple[list[str], list[str]]:
        """Captions, and what they are about: one of each in training, all of them in evaluation."""
        is_training, templates = self.preparation.augmentation is not None, self.preparation.templates
        subjects = list(raw.captions) or [self._words[label] for label in raw.labels]
        if is_training and subjects:
            subjects = [subjects[int(numbers[0] * len(subjects))]]
        if raw.captions:
            return subjects, subjects
        template = templates[int(numbers[1] * len(templates))] if is_training else templates[0]
        return [template.replace("{}", subject) for subject in subjects], subjects

    def _multi_hot(self, raw: RawSample) -> Tensor:
        label = torch.zeros(len(self.source.class_names))
        label[list(raw.labels)] = 1.0
        return label
