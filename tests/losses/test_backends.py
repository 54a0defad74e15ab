"""Which backend is chosen, and what is said where the kernel cannot run."""

import sys
import warnings
from importlib.util import find_spec

import pytest
import torch

from siglightning.losses import Negatives, backends, sigmoid_loss, softmax_loss
from siglightning.losses.backends import chosen_backend

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="without Triton")


def embeddings(dtype=torch.bfloat16, device="cpu"):
    return torch.eye(4, device=device).to(dtype)


class OnGpu:
    """What the choice asks of embeddings; a tensor on a GPU cannot be had everywhere."""

    def __init__(self, dtype):
        self.dtype, self.is_cuda, self.device = dtype, True, torch.device("cuda")


@pytest.fixture
def hopper(monkeypatch):
    """A machine with an H100 and a compiler."""
    backends._warn_once.cache_clear()
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(backends, "_has_compiler", lambda: True)


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
@pytest.mark.usefixtures("hopper")
def test_auto_on_a_gpu(dtype, precision, masked, expected):
    before = torch.backends.cuda.matmul.fp32_precision
    torch.backends.cuda.matmul.fp32_precision = precision
    try:
        assert chosen_backend("auto", OnGpu(dtype), masked=masked) == expected
    finally:
        torch.backends.cuda.matmul.fp32_precision = before


@needs_triton
@pytest.mark.parametrize(
    ("capability", "hip", "expected"),
    [
        ((9, 0), None, "triton"),
        ((10, 0), None, "triton"),
        ((7, 5), None, "eager"),
        ((8, 0), None, "eager"),
        ((12, 0), None, "eager"),
        ((9, 4), "6.4", "eager"),  # AMD's MI300
    ],
)
@pytest.mark.usefixtures("hopper")
def test_auto_knows_the_gpus_that_it_was_compiled_well_for(capability, hip, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(torch.version, "hip", hip)
    assert chosen_backend("auto", OnGpu(torch.bfloat16)) == expected


@needs_triton
@pytest.mark.usefixtures("hopper")
def test_auto_does_without_a_compiler_and_says_so_once(monkeypatch):
    monkeypatch.setattr(backends, "_has_compiler", lambda: False)
    with pytest.warns(UserWarning, match=r"without its fused kernel.*a machine without a C compiler.*Install gcc"):
        assert chosen_backend("auto", OnGpu(torch.bfloat16)) == "eager"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert chosen_backend("auto", OnGpu(torch.bfloat16)) == "eager"
    with pytest.raises(ValueError, match="Install gcc"):
        chosen_backend("triton", OnGpu(torch.bfloat16))


@needs_triton
@pytest.mark.usefixtures("hopper")
def test_fp16_accumulation_of_torch_is_not_gone_along_with(monkeypatch):
    """torch refuses fp32 results of fp16 factors then."""

    class Switched:
        fp32_precision, allow_fp16_accumulation = "none", True

    monkeypatch.setattr(torch.backends.cuda, "matmul", Switched())
    assert chosen_backend("auto", OnGpu(torch.bfloat16)) == "eager"
    with pytest.raises(ValueError, match="allow_fp16_accumulation to False"):
        chosen_backend("triton", OnGpu(torch.bfloat16))


@needs_triton
def test_the_kernel_says_what_it_cannot_do():
    scale, x = torch.zeros(1), embeddings(torch.float64)
    with pytest.raises(ValueError, match=r"got float64 embeddings. Give float32, bfloat16 or float16"):
        sigmoid_loss(x, x, scale, backend="triton")
    x = embeddings()
    with pytest.raises(ValueError, match="got masked negatives, which it does not know"):
        sigmoid_loss(x, x, scale, negatives=Negatives("hard", 2), backend="triton")


@pytest.mark.usefixtures("hopper")
def test_without_triton_the_remedy_is_named_and_auto_goes_on(monkeypatch):
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.setattr(backends, "find_spec", lambda name: None)
    x = embeddings()
    with pytest.raises(ValueError, match=r"an installation without Triton. Install torch's package for CUDA"):
        sigmoid_loss(x, x, torch.zeros(1), backend="triton")
    with pytest.warns(UserWarning, match="an installation without Triton"):
        assert chosen_backend("auto", OnGpu(torch.bfloat16)) == "eager"
    assert sigmoid_loss(x, x, torch.zeros(1)).isfinite()


@needs_triton
def test_a_cpu_without_the_interpreter_is_refused(monkeypatch):
    monkeypatch.setattr(backends, "is_interpreted", lambda: False)
    with pytest.raises(ValueError, match=r"embeddings on a CPU. Move them to a GPU, or set TRITON_INTERPRET=1"):
        sigmoid_loss(embeddings(), embeddings(), torch.zeros(1), backend="triton")


@pytest.mark.parametrize("name", ["log_scale", "bias", "match_ids"])
def test_what_lies_on_another_device_is_refused(name):
    x = torch.eye(4)
    arguments = {"log_scale": torch.zeros(1), "bias": torch.zeros(1), "match_ids": torch.arange(4)}
    arguments[name] = arguments[name].to("meta")
    with pytest.raises(ValueError, match=f"Expected {name} on cpu as the embeddings are, got meta. Move it there"):
        sigmoid_loss(x, x, **arguments)
