"""Pictures on their way to the model: augmentation for training, resizing for evaluation; uint8 in, uint8 out.

Every random parameter is drawn per sample from (seed, epoch, sample), so neither workers, batches nor resuming change
a pixel. The work itself is done for the whole batch at once: one affine resampling, one colour matrix.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torchvision.transforms import v2

from siglightning.data.draws import uniform

_LUMA = torch.tensor([0.299, 0.587, 0.114])  # ITU-R BT.601
_RGB_TO_YIQ = torch.tensor([[0.299, 0.587, 0.114], [0.5959, -0.2746, -0.3213], [0.2115, -0.5227, 0.3112]])
_YIQ_TO_RGB = torch.linalg.inv(_RGB_TO_YIQ.double()).float()
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

    def __post_init__(self) -> None:
        limits = {"crop": 0.99, "flip": 1.0, "grayscale": 1.0, "hue": 0.5, "rotation": 180.0, "fill": 255.0}
        for field in fields(self):
            value, limit = getattr(self, field.name), limits.get(field.name, math.inf)
            if not 0 <= value <= limit:
                raise ValueError(f"`augmentation.{field.name}` must lie between 0 and {limit:g}, got {value}.")


def augment(
    images: Sequence[Tensor], size: int, augmentation: Augmentation, *, seed: int, epoch: int, index: NDArray[np.int64]
) -> Tensor:
    """Crops, turns and recolours training pictures.

    Args:
        images: B pictures, uint8 ``[3, H, W]``; sizes may differ, equal sizes are faster.
        size: side of the result, in pixels.
        augmentation: how much of what.
        seed: of the run.
        epoch: counted from 0.
        index: int64 ``[B]``, the samples' positions in their data set.

    Returns:
        uint8 ``[B, 3, size, size]``.
    """
    draws = torch.from_numpy(uniform("picture", seed, epoch, index, 10)).float()
    shapes = torch.tensor([image.shape[1:] for image in images], dtype=torch.float32)
    boxes = _crop_boxes(draws[:, :4], shapes, augmentation)
    ready, boxes = _prefilter(images, boxes, size)
    result = torch.empty(len(images), 3, size, size)
    for shape in sorted({tuple(image.shape) for image in ready}):
        rows = [row for row, image in enumerate(ready) if tuple(image.shape) == shape]
        stack = torch.stack([ready[row] for row in rows]).float().sub_(augmentation.fill)
        grid = _affine_grid(boxes[rows], draws[rows, 4:6], shape[1:], size, augmentation)
        result[rows] = functional.grid_sample(stack, grid, mode="bilinear", align_corners=False)
    pixels = result.add_(augmentation.fill).flatten(2)
    return _recolour(pixels, draws[:, 6:], augmentation).view(-1, 3, size, size)


def resize(images: Sequence[Tensor], size: int) -> Tensor:
    """Squashes pictures to ``size x size``, bicubic with antialiasing; a picture of that size stays as it is.

    Args:
        images: B pictures, uint8 ``[3, H, W]``.
        size: side of the result, in pixels.

    Returns:
        uint8 ``[B, 3, size, size]``.
    """
    return torch.stack([_resize_one(image, size) for image in images])


def _resize_one(image: Tensor, size: int) -> Tensor:
    if image.shape[1:] == (size, size):
        return image
    resized: Tensor = v2.functional.resize(image, [size, size], v2.InterpolationMode.BICUBIC, antialias=True)
    return resized


def _crop_boxes(draws: Tensor, shapes: Tensor, augmentation: Augmentation) -> Tensor:
    """Centre and extent of each crop as shares of height and width: ``[B, 4]`` = (cy, cx, h, w)."""
    area = 1 - augmentation.crop * draws[:, 0]
    log_stretch = (2 * draws[:, 1] - 1) * math.log1p(augmentation.stretch)
    extent = (area.sqrt()[:, None] * torch.stack([-log_stretch / 2, log_stretch / 2], dim=1).exp()).clamp(max=1)
    centre = extent / 2 + (1 - extent) * draws[:, 2:4]
    return torch.cat([centre, extent], dim=1)


def _prefilter(images: Sequence[Tensor], boxes: Tensor, size: int) -> tuple[list[Tensor], Tensor]:
    """Cuts and shrinks pictures that are much larger than the target with antialiasing; theirs is then the whole."""
    ready, boxes = list(images), boxes.clone()
    for row, image in enumerate(images):
        height, width = image.shape[1:]
        if min(height, width) <= _PREFILTER_ABOVE * size:
            continue
        cy, cx, h, w = boxes[row].tolist()
        top, left = round((cy - h / 2) * height), round((cx - w / 2) * width)
        tall, wide = max(1, round(h * height)), max(1, round(w * width))
        bicubic = v2.InterpolationMode.BICUBIC
        ready[row] = v2.functional.resized_crop(image, top, left, tall, wide, [size, size], bicubic, antialias=True)
        boxes[row] = torch.tensor([0.5, 0.5, 1.0, 1.0])
    return ready, boxes


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


def _recolour(pixels: Tensor, draws: Tensor, augmentation: Augmentation) -> Tensor:
    """One 3 x 3 matrix and one offset a picture: hue, saturation, contrast, brightness. ``[B, 3, N]`` to uint8."""
    brightness, contrast, saturation = (
        1 + (2 * draws[:, i] - 1) * strength
        for i, strength in enumerate((augmentation.brightness, augmentation.contrast, augmentation.saturation))
    )
    # One draw decides both: its upper part the loss of colour, the rest (rescaled) the turn of the hue.
    colour = draws[:, 3]
    gray = colour < augmentation.grayscale
    spread = (colour - augmentation.grayscale) / max(1e-9, 1 - augmentation.grayscale)
    turn = (2 * spread.clamp(min=0) - 1) * 2 * math.pi * augmentation.hue
    chroma = torch.where(gray, 0.0, saturation)
    zero = torch.zeros_like(turn)
    rotate = torch.stack(
        [zero + 1, zero, zero, zero, turn.cos(), -turn.sin(), zero, turn.sin(), turn.cos()], dim=1
    ).view(-1, 3, 3)
    rotate[:, 1:] *= chroma[:, None, None]
    matrix = _YIQ_TO_RGB @ rotate @ _RGB_TO_YIQ
    mean_luma = _LUMA @ pixels.mean(dim=2).T  # a picture's mean survives hue and saturation changes
    gain = (brightness * contrast)[:, None, None]
    offset = (brightness * (1 - contrast) * mean_luma)[:, None, None].expand(-1, 3, 1)
    recoloured = torch.baddbmm(offset, gain * matrix, pixels)
    return recoloured.round_().clamp_(0, 255).to(torch.uint8)
