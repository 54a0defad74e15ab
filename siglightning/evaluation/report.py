"""What an evaluation hands over to tables and figures: numbers and a few examples to look at."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from siglightning.evaluation.bootstrap import MetricValue
from siglightning.evaluation.retrieval import retrieval_metrics

_TOP = 5
_SCANNED = 64  # rows looked through for five different captions


@dataclass(frozen=True)
class Example:
    """One image with the captions that the model ranks highest.

    Attributes:
        image: uint8 ``[3, H, W]``.
        truth: a caption that belongs to the image.
        captions: up to five different captions, best first.
        correct: for each of them, whether it belongs to the image.
    """

    image: Tensor
    truth: str
    captions: list[str]
    correct: list[bool]


@dataclass(frozen=True)
class Evaluation:
    """The result on one test set.

    Attributes:
        set_name: the test set's name, as in ``test/<set name>/...``.
        metrics: by name, such as ``t2i_recall@1`` or ``zeroshot_acc``.
        examples: images with their best captions; may be empty.
    """

    set_name: str
    metrics: dict[str, MetricValue]
    examples: list[Example] = field(default_factory=list)


class ExampleImages:
    """Keeps a fixed, seeded choice of images out of a stream of unknown length (reservoir by random priority).

    Which images are kept depends on the seed and their row numbers only, not on the batch size. With priorities of the
    caller's own it keeps those with the lowest.
    """

    def __init__(self, num_images: int = 12, seed: int = 0) -> None:
        self.num_images = num_images
        self._generator = torch.Generator().manual_seed(seed)
        self._priority: dict[int, float] = {}
        self._images: dict[int, Tensor] = {}

    def offer(self, first_row: int, images: Tensor, priorities: Tensor | None = None) -> None:
        """Consider images uint8 ``[B, 3, H, W]`` that are the rows ``first_row ... first_row + B - 1`` of the set.

        Args:
            first_row: of the batch.
            images: the batch.
            priorities: ``[B]``, the lowest stay; infinite ones do not. Default: drawn at random.
        """
        if priorities is None:
            priorities = torch.rand(len(images), generator=self._generator, dtype=torch.float64)
        for offset, priority in enumerate(priorities.tolist()):
            self._consider(first_row + offset, images[offset], priority)

    def absorb(self, other: "ExampleImages", first_row: int) -> None:
        """Consider what another one kept of a stretch that begins at row ``first_row`` of the whole."""
        for row, image in other._images.items():
            self._consider(first_row + row, image, other._priority[row])

    def taken(self, rows: Sequence[int]) -> "ExampleImages":
        """What is kept of some rows, which are then numbered anew in the order given."""
        new = ExampleImages(self.num_images)
        for number, row in enumerate(rows):
            if row in self._images:
                new._images[number], new._priority[number] = self._images[row], self._priority[row]
        return new

    @property
    def by_row(self) -> dict[int, Tensor]:
        """Kept images by row number, in ascending order."""
        return dict(sorted(self._images.items()))

    def _consider(self, row: int, image: Tensor, priority: float) -> None:
        if priority == math.inf:
            return
        if len(self._images) == self.num_images:
            worst = max(self._priority, key=self._priority.__getitem__, default=None)
            if worst is None or self._priority[worst] <= priority:
                return
            del self._priority[worst], self._images[worst]
        self._priority[row] = priority
        self._images[row] = image.cpu().clone()


def evaluate_retrieval(
    set_name: str,
    image_embeds: Tensor,
    text_embeds: Tensor,
    image_ids: Tensor,
    text_ids: Tensor,
    *,
    captions: Sequence[str] | Tensor | None = None,
    caption_of: Callable[[Tensor], str] | None = None,
    example_images: Mapping[int, Tensor] | None = None,
    ranks: tuple[Tensor, Tensor] | None = None,
    num_resamples: int = 1000,
) -> Evaluation:
    """Retrieval metrics of one test set and examples for a grid.

    Args:
        set_name: the test set's name.
        image_embeds: ``[N, d]``, unit length, all processes' rows.
        text_embeds: ``[M, d]``.
        image_ids: int64 ``[N]``.
        text_ids: int64 ``[M]``; equal ids match.
        captions: the M captions, as strings or as token ids int64 ``[M, L]`` that ``caption_of`` decodes. Only the few
            that are shown are decoded. Without captions there are no examples.
        caption_of: token ids int64 ``[L]`` to a string; needed with token ids.
        example_images: uint8 ``[3, H, W]`` pictures by row of ``image_embeds`` (see `ExampleImages`).
        ranks: of `siglightning.evaluation.ranks_both_ways`, where they are known already.
        num_resamples: bootstrap samples; fewer for a quick validation.

    Raises:
        ValueError: embeddings and ids that do not belong together; token ids without ``caption_of``.
    """
    if isinstance(captions, Tensor) and caption_of is None:
        raise ValueError("Captions given as token ids need caption_of to decode them, got None. Pass tokenizer.decode.")
    metrics = retrieval_metrics(
        image_embeds, text_embeds, image_ids, text_ids, ranks=ranks, num_resamples=num_resamples
    )
    examples = []
    if captions is not None:
        for row, image in (example_images or {}).items():
            best = _best_texts(image_embeds[row], text_embeds)
            own = (text_ids == image_ids[row]).nonzero().flatten().tolist()
            examples.append(_example(image, best, own, lambda text: _caption(captions, text, caption_of)))
    return Evaluation(set_name, metrics, examples)


def _best_texts(image_embed: Tensor, text_embeds: Tensor) -> list[int]:
    scores = (text_embeds.float() @ image_embed.float()).nan_to_num(nan=-torch.inf)
    rows: list[int] = scores.topk(min(_SCANNED, len(scores))).indices.tolist()
    return rows


def _example(image: Tensor, best: list[int], own: list[int], read: Callable[[int], str]) -> Example:
    """The five best different captions; ``best`` and ``own`` are rows of texts, ranked and right ones."""
    truths = [read(text) for text in own]
    shown = list(dict.fromkeys(map(read, best)))[:_TOP]
    return Example(image, truths[0], shown, [caption in truths for caption in shown])


def _caption(captions: Sequence[str] | Tensor, text: int, caption_of: Callable[[Tensor], str] | None) -> str:
    if not isinstance(captions, Tensor):
        return captions[text]
    assert caption_of is not None  # checked before the metrics were computed
    return caption_of(captions[text])
