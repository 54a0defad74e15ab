"""The contract between data and tasks: what a batch holds, and what a model asks of its inputs.

Data modules and tasks never import each other. A data module produces :class:`Batch` dictionaries; a task
publishes an :class:`InputSpec` that tells the data module what size and which tokens its model wants.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from torch import Tensor


class Batch(TypedDict, total=False):
    """One batch. Every key is optional; a task names the ones that it needs.

    Attributes:
        image: uint8 ``[B, 3, H, W]``; normalised on the device by the tower that reads it.
        text: int64 ``[T, L]`` token ids. ``T = B`` while training. In evaluation ``T >= B``: several captions
            per image, owned as ``text_owner`` tells.
        text_owner: int64 ``[T]``, the row of ``image`` that each row of ``text`` describes. Absent: row i
            describes image i.
        label: int64 ``[B]`` class indices or float ``[B, C]`` multi-hot.
        id: the sample's key in its data set, one for each image.
        match_id: int64 ``[B]``; images with equal numbers match the same captions, so that in a pairwise loss
            they are never each other's negatives, and in retrieval either is a right answer.
        image_embed: float ``[B, d]``, features of the image tower (before its projection), where images were embedded
            before.
        text_embed: float ``[T, d]``, likewise of the text tower; beside ``text``, in its order.
    """

    image: Tensor
    text: Tensor
    text_owner: Tensor
    label: Tensor
    id: list[str] | Tensor
    match_id: Tensor
    image_embed: Tensor
    text_embed: Tensor


@dataclass(frozen=True)
class Resizing:
    """How a picture becomes a square when it is evaluated; a tower's checkpoint says what it was trained with.

    Attributes:
        crop: ``None`` squashes the picture. A number makes its shorter side ``image_size / crop`` pixels long and cuts
            the square out of the middle: 1 for CLIP.
        interpolation: ``bicubic`` or ``bilinear``, both with antialiasing.
        rounding: of half a pixel when the middle is cut out: ``even`` as torchvision and open_clip do, or ``down`` as
            transformers does.
        resampler: ``torchvision``, as transformers, or ``pillow``, as open_clip; they differ by up to three gray levels
            at sharp edges.
    """

    crop: float | None = None
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    rounding: Literal["even", "down"] = "even"
    resampler: Literal["torchvision", "pillow"] = "torchvision"

    def __post_init__(self) -> None:
        if self.crop is not None and not 0 < self.crop <= 1:
            raise ValueError(f"`crop` must lie above 0 and at most at 1, or be None to squash; got {self.crop}.")


@dataclass(frozen=True)
class InputSpec:
    """What a model wants of its inputs, published by a task as ``task.input_spec``.

    Attributes:
        image_size: side of the square input picture, in pixels.
        tokenizer: maps captions to int64 token ids ``[n, context_length]``; ``None`` when the model reads no text.
        feature_keys: what identifies the features of each frozen tower, ``image`` and ``text``: weights and
            preprocessing. Features that were stored under another key are not this model's.
        resizing: how pictures become squares of ``image_size`` in evaluation.
    """

    image_size: int
    tokenizer: Callable[[Sequence[str]], Tensor] | None
    feature_keys: Callable[[], Mapping[str, str]] | None = None
    resizing: Resizing = Resizing()


@dataclass(frozen=True)
class ClassSet:
    """The classes of an evaluation set, published by a data module as ``data.classes_of(set_name)``.

    Attributes:
        names: of the classes, in the order of their labels.
        templates: sentences with ``{}`` in the place of a name, for prompts.
    """

    names: Sequence[str]
    templates: Sequence[str]
