"""Which code forms the tiles of a loss: torch's own operations, or a kernel that fuses all of a tile's arithmetic."""

from importlib.util import find_spec
from typing import Literal, get_args

import torch
from torch import Tensor

Backend = Literal["auto", "eager", "triton"]


def chosen_backend(backend: str, embeds: Tensor, *, masked: bool = False) -> Literal["eager", "triton"]:
    """Return what ``backend`` means for these embeddings.

    ``auto`` is the kernel where it is fast: on CUDA, where Triton is there (it comes with torch's own packages for
    it), for fp16 and bf16, for fp32 where products may round to tf32 (``torch.backends.cuda.matmul``), and without
    masks of negatives. Elsewhere it is ``eager``.

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
    hindrance = _hindrance(embeds, masked)
    if backend == "triton" and hindrance is not None:
        raise ValueError(f"Expected backend 'triton' where its kernel can run, got {hindrance} Or set backend='auto'.")
    is_fast = embeds.is_cuda and (embeds.dtype != torch.float32 or rounds_to_tf32())
    return "triton" if hindrance is None and (is_fast or backend == "triton") else "eager"


def _hindrance(embeds: Tensor, masked: bool) -> str | None:
    """Why the kernel cannot run, with the remedy; ``None`` if it can."""
    if embeds.dtype == torch.float64:
        return "float64 embeddings. Give float32, bfloat16 or float16."
    if masked:
        return "masked negatives, which it does not know. Leave `negatives` out."
    if find_spec("triton") is None:
        return "an installation without Triton. Install torch's package for CUDA, which brings it."
    if not embeds.is_cuda and not is_interpreted():
        return (
            f"embeddings on {embeds.device}. Move them to a GPU, or set TRITON_INTERPRET=1 before Python starts, which "
            "runs the kernel on the CPU, slowly, to check it."
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
