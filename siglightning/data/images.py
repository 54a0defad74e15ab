"""Encoded pictures to RGB: look at the header first, then decode with the fastest reader that knows the format.

torchvision decodes JPEG, PNG, WebP and GIF some two to three times as fast as Pillow, but it has no limit of size,
ignores the orientation that cameras write, and does not know TIFF or BMP; so Pillow reads every header, and those
formats whole.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor
from torchvision.io import ImageReadMode, decode_image

_FAST = {"JPEG", "PNG", "WEBP", "GIF"}
_ORIENTATION = 0x0112  # EXIF tag; 1 is upright
_ERRORS = (OSError, ValueError, RuntimeError, SyntaxError, EOFError, Image.DecompressionBombError)


class BadSampleError(Exception):
    """A sample that cannot be used.

    Attributes:
        reason: in one word or two, for counting: ``empty``, ``no picture``, ``too large``, ``too small``, ``damaged``.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


@dataclass(frozen=True)
class ImageLimits:
    """What a picture must be like.

    Attributes:
        max_pixels: width times height; beyond it a file of some kilobytes could fill the memory.
        min_side: of the shorter side, in pixels; tracking pixels and spacers are no pictures.
    """

    max_pixels: int = 64_000_000
    min_side: int = 8

    def __post_init__(self) -> None:
        if self.max_pixels < 1 or self.min_side < 1:
            raise ValueError(
                f"`limits.max_pixels` and `limits.min_side` must be at least 1, got {self.max_pixels} and "
                f"{self.min_side}."
            )


def decode(encoded: bytes, limits: ImageLimits | None = None) -> Tensor:
    """Decode one picture: the first frame, upright, over white where it is transparent.

    Args:
        encoded: a file's content, in any format that Pillow reads.
        limits: of its size.

    Returns:
        uint8 ``[3, H, W]``, RGB.

    Raises:
        BadSampleError: it is empty, no picture, damaged, or outside the limits; before anything large is allocated.
    """
    if not encoded:
        raise BadSampleError("empty", "0 bytes")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes, which are checked here, and of unusual metadata
        try:
            picture = Image.open(io.BytesIO(encoded))
        except Image.DecompressionBombError as error:  # Pillow's own limit, which is not ours, at the header already
            raise BadSampleError("too large", str(error).partition(",")[0]) from error
        except _ERRORS as error:
            raise BadSampleError("no picture", f"begins with {encoded[:16]!r}") from error
        _check_size(picture.size, limits or ImageLimits())
        try:
            return _decode_fast(encoded) if _is_plain(picture) else from_pillow(picture)
        except _ERRORS as error:
            raise BadSampleError("damaged", str(error).splitlines()[0][:200] if str(error) else "") from error


def _check_size(size: tuple[int, int], limits: ImageLimits) -> None:
    width, height = size
    if width * height > limits.max_pixels:
        raise BadSampleError("too large", f"{width} x {height} pixels")
    if min(width, height) < limits.min_side:
        raise BadSampleError("too small", f"{width} x {height} pixels")


def _is_plain(picture: Image.Image) -> bool:
    """Whether torchvision reads it as it is meant: upright, opaque, eight bits, three colours or gray."""
    return (
        picture.format in _FAST
        and picture.mode in ("RGB", "L")
        and "transparency" not in picture.info
        and getattr(picture, "n_frames", 1) == 1
        and picture.getexif().get(_ORIENTATION, 1) == 1
    )


def _decode_fast(encoded: bytes) -> Tensor:
    content = torch.frombuffer(bytearray(encoded), dtype=torch.uint8)
    image: Tensor = decode_image(content, mode=ImageReadMode.RGB)
    return image  # colours innermost in memory: to copy it, and to resize the copy, costs more than decoding


def from_pillow(picture: Image.Image) -> Tensor:
    """The first frame of an image of Pillow: uint8 ``[3, H, W]``, RGB, upright, over white where it is transparent."""
    picture.seek(0)
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I;16") or upright.mode == "I":  # 16 bits; Pillow's own conversion would clip them
        upright = Image.fromarray((np.asarray(upright, dtype=np.uint32) >> 8).clip(0, 255).astype(np.uint8))
    if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        upright = Image.alpha_composite(Image.new("RGBA", layer.size, "white"), layer)
    return torch.from_numpy(np.array(upright.convert("RGB"))).permute(2, 0, 1)
