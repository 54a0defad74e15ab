"""Pictures on their way to the model: augmentation for training, resizing for evaluation; uint8 in, uint8 out.

Every random parameter is drawn per sample from (seed, epoch, sample), so neither workers, batches nor resuming change
a pixel. Loading processes cut, turn and shrink; colour is only drawn there and applied on the device by
:func:`siglightning.data.colour.recolour`, where it costs nothing beside the towers.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from siglightning.batch import Resizing
from siglightning.data.draws import uniform

SQUASH = Resizing()
_PREFILTER_ABOVE = 1.5  # source side over target side; beyond it bilinear sampling would alias


@dataclass(frozen=True)
class Augmentation:
    """How training pictures vary. Zero turns a part off; all of it off leaves a plain resize.

    Attributes:
        crop: largest share of the area that is cut away, in ``[0, 1)``.
        stretch: largest relative change of the crop's aspect ratio; 0.25 draws from 1/1.25 to 1.25, log-uniform.
        rotation: largest angle to either side, in degrees.
        flip: probability of a left-right flip. Off by default: letters and arrows lose their meaning.
        brightness: largest relative change of the intensity.
        contrast: largest relative change around the picture's mean luma.
        saturation: largest relative change of the colourfulness.
        hue: largest turn of the hue to either side, in full turns, at most 0.5.
        grayscale: probability of losing all colour.
        fill: what lies beyond the picture's border, 0 (black) to 255 (white).
    """

    crop: float = 0.4
    stretch: float = 0.2
    rotation: float = 10.0
    flip: float = 0.0
    brightness: float = 0.2
    contrast: float = 0.2
    saturation: float = 0.3
    hue: float = 0.03
    grayscale: float = 0.0
    fill: int = 255

    @property
    def varies(self) -> bool:
        """Whether a picture is another one in every epoch."""
        return self.varies_colour or any((self.crop, self.stretch, self.rotation, self.flip))

    @property
    def varies_colour(self) -> bool:
        """Whether any colour changes."""
        return any((self.brightness, self.contrast, self.saturation, self.hue, self.grayscale))

    def __post_init__(self) -> None:
        limits = {"crop": 0.99, "flip": 1.0, "grayscale": 1.0, "hue": 0.5, "rotation": 180.0, "fill": 255.0}
        for field in fields(self):
            value, limit = getattr(self, field.name), limits.get(field.name, math.inf)
            if not 0 <= value <= limit:
                raise ValueError(f"`augmentation.{field.name}` must lie between 0 and {limit:g}, got {value}.")


def augment(
    images: Iterable[Tensor], size: int, augmentation: Augmentation, *, seed: int, epoch: int, index: NDArray[np.int64]
) -> tuple[Tensor, Tensor | None]:
    """Crops, turns and mirrors training pictures, and draws how their colours shall change.

    Args:
        images: B pictures, uint8 ``[3, H, W]``; sizes may differ. Large ones are shrunk as they come, so that one who
            decodes them one by one holds one at a time.
        size: side of the result, in pixels.
        augmentation: how much of what.
        seed: of the run.
        epoch: counted from 0.
        index: int64 ``[B]``, the samples' positions in their data set.

    Returns:
        uint8 ``[B, 3, size, size]``, and what :func:`~siglightning.data.colour.recolour` makes of them: float32
        ``[B, 4]``, ``None`` where colours stay.
    """
    draws = torch.from_numpy(uniform("picture", seed, epoch, index, 10)).float()
    boxes = _crop_boxes(draws[:, :4], augmentation)
    place = _place if augmentation.rotation else _place_upright
    placed = place(images, boxes, draws[:, 4:6], size, augmentation)
    return placed, _draw_colour(draws[:, 6:], augmentation) if augmentation.varies_colour else None


def resize(images: Iterable[Tensor], size: int, resizing: Resizing = SQUASH) -> Tensor:
    """Makes pictures squares of ``size x size``, with antialiasing; a picture of the right size stays as it is.

    Args:
        images: B pictures, uint8 ``[3, H, W]``.
        size: side of the result, in pixels.
        resizing: how; by default they are squashed, bicubic.

    Returns:
        uint8 ``[B, 3, size, size]``.
    """
    one = _resize_one if resizing.crop is None else _resize_and_cut
    return _stack([one(image, size, resizing) for image in images], size)


def _stack(images: Sequence[Tensor], size: int) -> Tensor:
    """Pictures as a batch with colours innermost, as they are decoded: collation turns them while it copies anyway."""
    batch = torch.empty(len(images), 3, size, size, dtype=torch.uint8, memory_format=torch.channels_last)
    for row, image in enumerate(images):
        batch[row] = image
    return batch


def _resize_one(image: Tensor, size: int, resizing: Resizing = SQUASH) -> Tensor:
    return _interpolate(image, (size, size), resizing)


def _resize_and_cut(image: Tensor, size: int, resizing: Resizing) -> Tensor:
    """The middle of the picture, whose shorter side was made a little longer than ``size``, or as long."""
    assert resizing.crop is not None
    shorter, (height, width) = max(size, round(size / resizing.crop)), image.shape[1:]
    longer = int(shorter * max(height, width) / min(height, width))
    sides = (longer, shorter) if height > width else (shorter, longer)
    middle = round if resizing.rounding == "even" else math.floor
    top, left = (middle((side - size) / 2) for side in sides)
    return _interpolate(image, sides, resizing)[:, top : top + size, left : left + size]


def _interpolate(image: Tensor, sides: tuple[int, int], resizing: Resizing) -> Tensor:
    if tuple(image.shape[1:]) == sides:
        return image
    if resizing.resampler == "pillow":
        way = Image.Resampling[resizing.interpolation.upper()]
        small = Image.fromarray(image.permute(1, 2, 0).numpy()).resize(sides[::-1], way)
        return torch.from_numpy(np.array(small)).permute(2, 0, 1)
    mode = v2.InterpolationMode(resizing.interpolation)
    resized: Tensor = v2.functional.resize(image, list(sides), mode, antialias=True)
    return resized


def _crop_boxes(draws: Tensor, augmentation: Augmentation) -> Tensor:
    """Centre and extent of each crop as shares of height and width: ``[B, 4]`` = (cy, cx, h, w)."""
    area = 1 - augmentation.crop * draws[:, 0]
    log_stretch = (2 * draws[:, 1] - 1) * math.log1p(augmentation.stretch)
    extent = (area.sqrt()[:, None] * torch.stack([-log_stretch / 2, log_stretch / 2], dim=1).exp()).clamp(max=1)
    centre = extent / 2 + (1 - extent) * draws[:, 2:4]
    return torch.cat([centre, extent], dim=1)


def _place_upright(
    images: Iterable[Tensor], boxes: Tensor, draws: Tensor, size: int, augmentation: Augmentation
) -> Tensor:
    """Crops on whole pixels, resized with antialiasing, some mirrored."""
    mirrored = draws[:, 1] < augmentation.flip
    placed = (_cut(image, boxes[row], size) for row, image in enumerate(images))
    return _stack([image.flip(-1) if mirrored[row] else image for row, image in enumerate(placed)], size)


def _place(images: Iterable[Tensor], boxes: Tensor, draws: Tensor, size: int, augmentation: Augmentation) -> Tensor:
    """One affine resampling for all pictures of one size; ``fill`` shows where a turn looks over the border."""
    ready, boxes = _prefilter(images, boxes, size)
    result = torch.empty(len(boxes), 3, size, size)
    for shape in sorted({tuple(image.shape) for image in ready}):
        rows = [row for row, image in enumerate(ready) if tuple(image.shape) == shape]
        stack = torch.stack([ready[row] for row in rows]).float().sub_(augmentation.fill)
        grid = _affine_grid(boxes[rows], draws[rows], shape[1:], size, augmentation)
        result[rows] = functional.grid_sample(stack, grid, mode="bilinear", align_corners=False)
    return result.add_(augmentation.fill).round_().clamp_(0, 255).to(torch.uint8)


def _prefilter(images: Iterable[Tensor], boxes: Tensor, size: int) -> tuple[list[Tensor], Tensor]:
    """Cuts and shrinks pictures that are much larger than the target with antialiasing; theirs is then the whole."""
    ready, boxes = [], boxes.clone()
    for row, image in enumerate(images):
        is_large = min(image.shape[1:]) > _PREFILTER_ABOVE * size
        ready.append(_cut(image, boxes[row], size) if is_large else image)
        if is_large:
            boxes[row] = torch.tensor([0.5, 0.5, 1.0, 1.0])
    return ready, boxes


def _cut(image: Tensor, box: Tensor, size: int) -> Tensor:
    """A crop on whole pixels, resized to ``size x size``, bicubic with antialiasing."""
    height, width = image.shape[1:]
    cy, cx, h, w = box.tolist()
    top, left = round((cy - h / 2) * height), round((cx - w / 2) * width)
    tall, wide = max(1, round(h * height)), max(1, round(w * width))
    crop = image[:, top : top + tall, left : left + wide].permute(1, 2, 0).contiguous()  # a fifth faster than a view
    return _resize_one(crop.permute(2, 0, 1), size)


def _affine_grid(boxes: Tensor, draws: Tensor, shape: tuple[int, ...], size: int, augmentation: Augmentation) -> Tensor:
    """Where each target pixel looks in its source: turn about the crop's centre, flip, crop; ``[B, S, S, 2]``."""
    angle = (2 * draws[:, 0] - 1) * math.radians(augmentation.rotation)
    mirror = torch.where(draws[:, 1] < augmentation.flip, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    cy, cx, h, w = boxes.unbind(1)
    aspect = shape[0] / shape[1]  # turns are made in pixels, coordinates run from -1 to 1 along both sides
    rows = [
        torch.stack([w * cos * mirror, -h * aspect * sin, 2 * cx - 1], dim=1),
        torch.stack([w / aspect * sin * mirror, h * cos, 2 * cy - 1], dim=1),
    ]
    return functional.affine_grid(torch.stack(rows, dim=1), [len(boxes), 3, size, size], align_corners=False)


def _draw_colour(draws: Tensor, augmentation: Augmentation) -> Tensor:
    """Brightness, contrast and saturation as factors, the turn of the hue in radians: ``[B, 4]`` of as many draws."""
    strengths = torch.tensor([augmentation.brightness, augmentation.contrast, augmentation.saturation])
    factors = 1 + (2 * draws[:, :3] - 1) * strengths
    # One draw decides both: its lower part the loss of colour, the rest (rescaled) the turn of the hue.
    gray = draws[:, 3] < augmentation.grayscale
    spread = (draws[:, 3] - augmentation.grayscale) / max(1e-9, 1 - augmentation.grayscale)
    turn = (2 * spread.clamp(min=0) - 1) * 2 * math.pi * augmentation.hue
    factors[:, 2] = torch.where(gray, 0.0, factors[:, 2])
    return torch.cat([factors, turn[:, None]], dim=1)
