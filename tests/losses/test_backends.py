"""Which backend is chosen, and what is said where the kernel cannot run."""

import sys
from importlib.util import find_spec

import pytest
import torch

from siglightning.losses import Negatives, sigmoid_loss, softmax_loss
from siglightning.losses.backends import chosen_backend

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="without Triton")


def embeddings(dtype=torch.bfloat16, device="cpu"):
    return torch.eye(4, device=device).to(dtype)


class OnGpu:
    """What the choice asks of embeddings; a tensor on a GPU cannot be had everywhere."""

    def __init__(self, dtype):
        self.dtype, self.is_cuda, self.device = dtype, True, torch.device("cuda")


@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_loss])
def test_an_unknown_name_is_refused(loss):
    with pytest.raises(ValueError, match="one of 'auto', 'eager', 'triton', got 'cobol'"):
        loss(embeddings(), embeddings(), torch.zeros(1), backend="cobol")


def test_auto_is_eager_on_a_cpu():
    assert chosen_backend("auto", embeddings()) == "eager"


@needs_triton
@pytest.mark.parametrize(
    ("dtype", "precision", "masked", "expected"),
    [
        (torch.bfloat16, "ieee", False, "triton"),
        (torch.float16, "ieee", False, "triton"),
        (torch.float32, "ieee", False, "eager"),  # such products are slow in a kernel
        (torch.float32, "tf32", False, "triton"),
        (torch.float64, "tf32", False, "eager"),
        (torch.bfloat16, "ieee", True, "eager"),
    ],
)
def test_auto_on_a_gpu(dtype, precision, masked, expected):
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        assert chosen_backend("auto", OnGpu(dtype), masked=masked) == expected
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@needs_triton
def test_the_kernel_says_what_it_cannot_do():
    scale, x = torch.zeros(1), embeddings(torch.float64)
    with pytest.raises(ValueError, match=r"got float64 embeddings. Give float32, bfloat16 or float16"):
        sigmoid_loss(x, x, scale, backend="triton")
    x = embeddings()
    with pytest.raises(ValueError, match="got masked negatives, which it does not know"):
        sigmoid_loss(x, x, scale, negatives=Negatives("hard", 2), backend="triton")


def test_without_triton_the_remedy_is_named_and_auto_goes_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr("siglightning.losses.backends.find_spec", lambda name: None)
    x = embeddings()
    with pytest.raises(ValueError, match=r"an installation without Triton. Install torch's package for CUDA"):
        sigmoid_loss(x, x, torch.zeros(1), backend="triton")
    assert chosen_backend("auto", OnGpu(torch.bfloat16)) == "eager"
    assert sigmoid_loss(x, x, torch.zeros(1)).isfinite()


@needs_triton
def test_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setattr("siglightning.losses.backends.is_interpreted", lambda: False)
    with pytest.raises(ValueError, match=r"embeddings on cpu. Move them to a GPU, or set TRITON_INTERPRET=1"):
        sigmoid_loss(embeddings(), embeddings(), torch.zeros(1), backend="triton")
