"""Pictures of an archive as samples: augmented with drawn captions for training, plain with names for evaluation."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from siglightning.batch import Resizing
from siglightning.data.collate import Sample
from siglightning.data.dataset import SampleDataset, of_one_epoch, with_colours
from siglightning.data.draws import uniform
from siglightning.data.matching import match_number
from siglightning.data.pictograms.archive import PictogramArchive
from siglightning.data.pictograms.captions import DRAWS_PER_CAPTION, Captions, EvalCaptions
from siglightning.data.sampler import SampleKey
from siglightning.data.transforms import SQUASH, Augmentation, augment, resize


class PictogramDataset(SampleDataset):
    """Evaluation samples: the picture resized, its English name.

    Args:
        archive: where the pictures are.
        rows: int64, the rows of `archive.pictures` that belong to this set.
        captions: names and keywords.
        labels: int64 ``[N]`` classes or float ``[N, C]`` multi-hot of all the archive's pictures.
        image_size: side of the pictures handed out, in pixels.
        eval_captions: what captions to hand out, see `Captions.for_evaluation`.
        resizing: how pictures become squares of that size.
    """

    def __init__(
        self,
        archive: PictogramArchive,
        rows: NDArray[np.int64],
        captions: Captions,
        labels: Tensor,
        image_size: int,
        eval_captions: EvalCaptions = "name",
        resizing: Resizing = SQUASH,
    ) -> None:
        self.rows = rows
        self._archive = archive
        self._captions = captions
        self._labels = labels[torch.from_numpy(rows)]
        self._image_size, self._resizing = image_size, resizing
        self._eval_captions = eval_captions
        styles, sources = archive.pictures["style"], archive.pictures["source"]
        self._ids = [f"{styles[row].as_py()}/{sources[row].as_py()}" for row in rows.tolist()]

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def labels(self) -> NDArray[np.int64] | None:
        """Categories; ``None`` where samples have tags."""
        return self._labels.numpy() if self._labels.ndim == 1 else None

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> list[Sample]:
        """Samples; `match_id` stands for the name, so that pictures of equal names match each other's captions."""
        indices = of_one_epoch(keys)[1].tolist()
        rows = [int(self.rows[index]) for index in indices]
        images = resize([self._archive.read_image(row) for row in rows], self._image_size, self._resizing)
        samples = []
        for index, row, image in zip(indices, rows, images, strict=True):
            captions = self._captions.for_evaluation(row, self._eval_captions)
            samples.append(self._sample(index, image, captions, match_number(self._captions.name(row))))
        return samples

    def _sample(self, index: int, image: Tensor, captions: list[str], match_id: int) -> Sample:
        return Sample(image=image, captions=captions, label=self._labels[index], id=self._ids[index], match_id=match_id)


class TrainingPictograms(PictogramDataset):
    """Training samples: the picture augmented, one caption drawn; both a function of (seed, epoch, sample).

    The decoded pictures stay in memory (12 kB each), where forked loading processes share them.

    Args:
        archive: where the pictures are.
        rows: int64, the rows of `archive.pictures` that belong to this set.
        captions: names and keywords.
        labels: int64 ``[N]`` classes or float ``[N, C]`` multi-hot of all the archive's pictures.
        image_size: side of the pictures handed out, in pixels.
        augmentation: how pictures vary.
        seed: of the run.
    """

    def __init__(
        self,
        archive: PictogramArchive,
        rows: NDArray[np.int64],
        captions: Captions,
        labels: Tensor,
        image_size: int,
        augmentation: Augmentation,
        seed: int,
    ) -> None:
        super().__init__(archive, rows, captions, labels, image_size)
        self._augmentation, self._all_labels = augmentation, labels
        self.pictures_vary = augmentation.varies
        self._seed = seed
        self._pictures: list[Tensor] | None = None

    def plain(self) -> PictogramDataset:
        """The same pictures, only resized."""
        return PictogramDataset(self._archive, self.rows, self._captions, self._all_labels, self._image_size)

    def prepare(self) -> None:
        """Decodes all pictures now, before loading processes are forked."""
        if self._pictures is None:
            self._pictures = list(torch.stack([self._archive.read_image(row) for row in self.rows.tolist()]))

    def __getitems__(self, keys: Sequence[SampleKey | int]) -> list[Sample]:
        """Samples of one epoch; `match_id` stands for the subject of the drawn caption."""
        self.prepare()
        assert self._pictures is not None
        epoch, index = of_one_epoch(keys)
        pictures = [self._pictures[i] for i in index.tolist()]
        images, colours = augment(
            pictures, self._image_size, self._augmentation, seed=self._seed, epoch=epoch, index=index
        )
        numbers = uniform("caption", self._seed, epoch, index, DRAWS_PER_CAPTION)
        samples = []
        for i, image, draws in zip(index.tolist(), images, numbers, strict=True):
            caption, subject = self._captions.draw(int(self.rows[i]), draws)
            samples.append(self._sample(i, image, [caption], match_number(subject)))
        return with_colours(samples, colours)
