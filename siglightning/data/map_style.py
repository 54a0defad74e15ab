"""Samples of a source, ready for a batch: decoded, augmented with one caption drawn, or resized with all of them."""

from abc import abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from typing_extensions import override

from siglightning.batch import Resizing
from siglightning.data.bad_samples import BadSampleLog
from siglightning.data.collate import Sample
from siglightning.data.dataset import SampleDataset, of_one_epoch, with_colours
from siglightning.data.draws import uniform
from siglightning.data.images import BadSampleError, ImageLimits, decode
from siglightning.data.matching import match_number
from siglightning.data.sampler import SampleKey
from siglightning.data.source import RawSample, Samples, Source
from siglightning.data.transforms import SQUASH, Augmentation, augment, resize

_MAX_CHARACTERS = 10_000  # of a caption; no context is as long, and tokenizers slow down with length
MAX_SUBSTITUTES = 100  # one after the other, before nothing seems to be of use


@dataclass(frozen=True)
class Preparation:
    """What is done to every sample of a set.

    Attributes:
        image_size: side of the pictures handed out, in pixels.
        templates: sentences with ``{}`` in the place of a class, where a sample has labels and no captions.
        augmentation: how pictures vary; ``None`` prepares for evaluation.
        seed: of the run, for augmentation and the choice of captions.
        limits: of the size of pictures.
        language_shares: how often a caption is drawn in each language, for captions in several.
        resizing: how pictures become squares where they are not augmented.
    """

    image_size: int
    templates: Sequence[str] = ("a photo of a {}.",)
    augmentation: Augmentation | None = None
    seed: int = 0
    limits: ImageLimits = field(default_factory=ImageLimits)
    language_shares: Mapping[str, float] = field(default_factory=dict)
    resizing: Resizing = SQUASH


class PreparedDataset(SampleDataset):
    """Samples made ready for a batch, wherever they are loaded from.

    A sample that cannot be used is replaced by the next one that can, so that batches keep their size.

    Args:
        samples: what is known of them.
        preparation: what is done to them.
        log: takes down what cannot be used.
    """

    def __init__(self, samples: Samples, preparation: Preparation, log: BadSampleLog | None = None) -> None:
        self.preparation = preparation
        self.log = log or BadSampleLog(None, 0.0)
        self.pictures_vary = preparation.augmentation is not None and preparation.augmentation.varies
        self._has_classes, self._one_label = bool(samples.class_names), samples.one_label
        self._words = [name.replace("_", " ").strip() for name in samples.class_names]

    @abstractmethod
    def load(self, sample: int, epoch: int) -> tuple[str, RawSample, Tensor]:
        """Key, content and pixels of a sample, or of the one that takes its place."""

    @override
    def __getitems__(self, keys: Sequence[SampleKey | int]) -> list[Sample]:
        """Samples of one epoch. ``match_id`` stands for the caption's subject, in evaluation for all captions."""
        epoch, index = of_one_epoch(keys)
        loaded: list[tuple[str, RawSample]] = []

        def pictures() -> Iterator[Tensor]:
            for sample in index.tolist():
                key, raw, image = self.load(sample, epoch)
                loaded.append((key, raw))
                yield image  # to be shrunk before the next one is decoded: memory is then used again

        images, colours = self._images(pictures(), epoch, index)
        draws = uniform("caption", self.preparation.seed, epoch, index, 2)
        samples = [
            self._sample(key, raw, image, numbers)
            for (key, raw), image, numbers in zip(loaded, images, draws, strict=True)
        ]
        return with_colours(samples, colours)

    def pixels(self, raw: RawSample) -> Tensor:
        """The picture, uint8 ``[3, H, W]``.

        Raises:
            BadSampleError: it is none.
        """
        return raw.image if isinstance(raw.image, Tensor) else decode(raw.image, self.preparation.limits)

    def _images(self, images: Iterable[Tensor], epoch: int, index: NDArray[np.int64]) -> tuple[Tensor, Tensor | None]:
        want = self.preparation
        if want.augmentation is None:
            return resize(images, want.image_size, want.resizing), None
        return augment(images, want.image_size, want.augmentation, seed=want.seed, epoch=epoch, index=index)

    def _sample(self, key: str, raw: RawSample, image: Tensor, numbers: NDArray[np.float64]) -> Sample:
        sample = Sample(image=image, id=key)
        captions, subjects = self._captions(raw, numbers)
        if captions:
            sample["captions"] = [caption[:_MAX_CHARACTERS] for caption in captions]
            sample["match_id"] = match_number("\0".join(subjects))
        if self._has_classes:
            sample["label"] = raw.labels[0] if self._one_label else self._multi_hot(raw)
        return sample

    def _captions(self, raw: RawSample, numbers: NDArray[np.float64]) -> tuple[list[str], list[str]]:
        """Captions, and what they are about: one of each in training, all of them in evaluation."""
        is_training, templates = self.preparation.augmentation is not None, self.preparation.templates
        subjects = list(raw.captions) or [self._words[label] for label in raw.labels]
        if is_training and subjects:
            subjects = [subjects[self._choice(raw, len(subjects), numbers[0])]]
        if raw.captions:
            return subjects, subjects
        template = templates[int(numbers[1] * len(templates))] if is_training else templates[0]
        return [template.replace("{}", subject) for subject in subjects], subjects

    def _choice(self, raw: RawSample, count: int, number: float) -> int:
        """Which of the captions (or labels) a number in ``[0, 1)`` stands for."""
        weights = np.ones(count) if len(raw.weights) != count else np.asarray(raw.weights, dtype=np.float64)
        if self.preparation.language_shares and len(raw.languages) == count:
            spoken = Counter(raw.languages)  # captions of one language share what is the language's
            share = self.preparation.language_shares
            weights = weights * [share.get(name, 0.0) / spoken[name] for name in raw.languages]
        thresholds = np.cumsum(weights)
        return min(int(np.searchsorted(thresholds, number * thresholds[-1], side="right")), count - 1)

    def _multi_hot(self, raw: RawSample) -> Tensor:
        label = torch.zeros(len(self._words))
        label[list(raw.labels)] = 1.0
        return label


class MapDataset(PreparedDataset):
    """Some rows of a source.

    What takes the place of a sample that cannot be used depends on the data alone: the next row.

    Args:
        source: where samples come from.
        rows: int64, positions in the source.
        preparation: what is done to them.
        log: takes down what cannot be used.
    """

    def __init__(
        self, source: Source, rows: NDArray[np.int64], preparation: Preparation, log: BadSampleLog | None = None
    ) -> None:
        super().__init__(source, preparation, log)
        self.source, self.rows = source, rows

    @override
    def __len__(self) -> int:
        return len(self.rows)

    @property
    @override
    def labels(self) -> NDArray[np.int64] | None:
        labels = self.source.row_labels
        return None if labels is None else labels[self.rows]

    @override
    def plain(self) -> "MapDataset":
        unlimited = BadSampleLog(None, 1.0)  # the run's own log counts what training meets
        return MapDataset(self.source, self.rows, replace(self.preparation, augmentation=None), unlimited)

    @override
    def load(self, sample: int, epoch: int) -> tuple[str, RawSample, Tensor]:
        for step in range(min(MAX_SUBSTITUTES, len(self.rows))):
            row = int(self.rows[(sample + step) % len(self.rows)])
            try:
                raw = self.source.read(row)
                image = self.pixels(raw)
            except BadSampleError as error:
                self.log.bad(self.source.key(row), error)
            except Exception as error:
                raise RuntimeError(f"Sample {row} of the data ({self.source.key(row)}) failed: {error!r}") from error
            else:
                self.log.good()
                return self.source.key(row), raw, image
        raise ValueError(
            f"None of the {MAX_SUBSTITUTES} samples from {self.source.key(int(self.rows[sample]))} on can be used: "
            f"{dict(self.log.reasons)}."
        )
