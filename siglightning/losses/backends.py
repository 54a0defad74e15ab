"""Which code forms the tiles of a loss: torch's own operations, or a kernel that fuses all of a tile's arithmetic."""

import os
import shutil
import warnings
from functools import cache
from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "eager", "triton"]
_FAST_CAPABILITIES = (
    9,
    10,
)  # Hopper and the first Blackwell: elsewhere the compiler's reports are poor (kernels_*.md)


def chosen_backend(backend: str, embeds: Tensor, *, masked: bool = False) -> Literal["eager", "triton"]:
    """Return what ``backend`` means for these embeddings.

    ``auto`` is the kernel where it should be fast: on NVIDIA GPUs of compute capability 9 or 10 (H100, H200, B200), for
    fp16 and bf16, for fp32 where products may round to tf32 (``torch.backends.cuda.matmul``), and without masks of
    negatives. Elsewhere it is ``eager``; where only the installation is in the way, a warning says so once.

    Args:
        backend: as the caller says.
        embeds: images or texts ``[b, d]``.
        masked: whether negatives are masked.

    Raises:
        ValueError: an unknown name, or ``triton`` for what it cannot do.
    """
    if backend not in get_args(Backend):
        raise ValueError(f"Expected backend to be one of {', '.join(map(repr, get_args(Backend)))}, got {backend!r}.")
    if backend == "eager":
        return "eager"
    hindrance = _of_call(embeds, masked)
    if backend == "triton":
        hindrance = hindrance or _of_installation(embeds.is_cuda)
        if hindrance is not None:
            raise ValueError(
                f"Expected backend 'triton' where its kernel can run, got {hindrance} Or set backend='auto'."
            )
        return "triton"
    if hindrance is not None or not _is_fast(embeds):
        return "eager"
    hindrance = _of_installation(embeds.is_cuda)
    if hindrance is not None:
        _warn_once(hindrance)
    return "eager" if hindrance is not None else "triton"


def _is_fast(embeds: Tensor) -> bool:
    if not embeds.is_cuda or torch.version.hip is not None:
        return False
    is_narrow = embeds.dtype != torch.float32 or rounds_to_tf32()
    return is_narrow and torch.cuda.get_device_capability(embeds.device)[0] in _FAST_CAPABILITIES


def _of_call(embeds: Tensor, masked: bool) -> str | None:
    """Why the kernel cannot do what is asked, with the remedy; ``None`` if it can."""
    if embeds.dtype == torch.float64:
        return "float64 embeddings. Give float32, bfloat16 or float16."
    if masked:
        return "masked negatives, which it does not know. Leave `negatives` out."
    if embeds.dtype != torch.float32 and getattr(torch.backends.cuda.matmul, "allow_fp16_accumulation", False):
        return "fp16 accumulation. Set torch.backends.cuda.matmul.allow_fp16_accumulation to False."
    return None


def _of_installation(on_gpu: bool) -> str | None:
    """Why the kernel cannot run here, with the remedy; ``None`` if it can."""
    if find_spec("triton") is None:
        return "an installation without Triton. Install torch's package for CUDA, which brings it."
    if on_gpu:
        return None if _has_compiler() else "a machine without a C compiler, which Triton needs. Install gcc."
    if not is_interpreted():
        return (
            "embeddings on a CPU. Move them to a GPU, or set TRITON_INTERPRET=1 before Python starts, which runs the "
            "kernel on the CPU, slowly, to check it."
        )
    return None


def is_interpreted() -> bool:
    """Whether Triton runs its kernels on the CPU, as TRITON_INTERPRET=1 at its import makes it."""
    import triton

    from siglightning.losses.triton_tiles import accumulate_products

    return not isinstance(accumulate_products, triton.JITFunction)


def rounds_to_tf32() -> bool:
    """Whether torch rounds fp32 factors of matrix products to tf32 on CUDA."""
    precision: str = torch.backends.cuda.matmul.fp32_precision
    return precision == "tf32"


@cache
def _has_compiler() -> bool:
    """Triton builds its launcher when it is first used, with what the variable CC names, or one of these."""
    return "CC" in os.environ or any(shutil.which(name) for name in ("gcc", "clang", "cc"))


@cache
def _warn_once(hindrance: str) -> None:
    warnings.warn(f"The loss runs without its fused kernel, which would be faster; this is {hindrance}", stacklevel=4)
