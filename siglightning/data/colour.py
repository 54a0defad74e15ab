"""Colours of training pictures, changed on the device for the whole batch by one matrix and one offset a picture."""

import torch
from torch import Tensor

_LUMA = (0.299, 0.587, 0.114)  # ITU-R BT.601
_RGB_TO_YIQ = (_LUMA, (0.5959, -0.2746, -0.3213), (0.2115, -0.5227, 0.3112))


def recolour(images: Tensor, colour: Tensor) -> Tensor:
    """Turns the hue, scales the colourfulness, then the contrast around the mean luma, then the intensity.

    Args:
        images: uint8 ``[B, 3, H, W]``.
        colour: float32 ``[B, 4]``: brightness, contrast and saturation as factors (1 changes nothing, a saturation of
            0 leaves gray), and the turn of the hue in radians.

    Returns:
        uint8 ``[B, 3, H, W]``, on the device of the pictures.
    """
    # In fp32 whatever a run's precision is: Lightning casts floats of a batch, and these are pixels in the end.
    brightness, contrast, saturation, turn = colour.to(images.device, torch.float32).unbind(1)
    pixels = images.flatten(2).float()
    luma = _sent(torch.tensor(_LUMA, dtype=torch.float32), images.device)
    gain = (brightness * contrast)[:, None, None]
    with torch.autocast(images.device.type, enabled=False):
        matrix = _chroma_matrix(saturation, turn)
        mean_luma = luma @ pixels.mean(dim=2).T  # which hue and saturation leave as it is
        offset = (brightness * (1 - contrast) * mean_luma)[:, None, None].expand(-1, 3, 1)
        changed = torch.baddbmm(offset, gain * matrix, pixels)
    return changed.round_().clamp_(0, 255).to(torch.uint8).view(images.shape)


def _chroma_matrix(saturation: Tensor, turn: Tensor) -> Tensor:
    """RGB to YIQ, both chroma axes turned and scaled, and back: ``[B, 3, 3]``."""
    to_yiq = torch.tensor(_RGB_TO_YIQ, dtype=torch.float64)
    to_rgb = _sent(torch.linalg.inv(to_yiq).to(saturation.dtype), saturation.device)
    zero, cos, sin = torch.zeros_like(turn), saturation * turn.cos(), saturation * turn.sin()
    rotate = torch.stack([zero + 1, zero, zero, zero, cos, -sin, zero, sin, cos], dim=1).view(-1, 3, 3)
    matrix: Tensor = to_rgb @ rotate @ _sent(to_yiq.to(saturation.dtype), saturation.device)
    return matrix


def _sent(constant: Tensor, device: torch.device) -> Tensor:
    """On the device; from pinned memory, since for a copy from any other the host waits."""
    return (constant.pin_memory() if device.type == "cuda" else constant).to(device, non_blocking=True)
