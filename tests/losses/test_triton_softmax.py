"""The softmax loss by fused kernels against its float64 definition: in Triton's interpreter, or on a GPU."""

import math

import pytest
import torch
from references import softmax_loss_loops, softmax_magnitudes, unit_pairs

pytest.importorskip("triton")

from siglightning.losses import triton_softmax
from siglightning.losses.softmax import softmax_loss
from siglightning.losses.triton_tiles import Blocks

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# As for the sigmoid loss, see test_triton_sigmoid.py; a logit of 112 carries 1e-5 in fp32 into its exponential.
SUMS = 1e-5
GRADIENTS = {torch.float32: 2e-5, torch.float16: 2 * 2**-11 + 2e-5, torch.bfloat16: 2**-8 + 2**-11 + 2e-5}


@pytest.fixture(autouse=True)
def small_blocks(request, monkeypatch):
    if DEVICE == "cpu" and "default_blocks" not in request.keywords:
        monkeypatch.setattr(triton_softmax, "default_blocks", lambda embeds, with_ids: Blocks(16, 32, 16, group=2))


def value_and_gradients(x, y, log_scale, **options):
    inputs = [value.detach().clone().to(DEVICE).requires_grad_() for value in (x, y)]
    scale = torch.tensor([log_scale], device=DEVICE, requires_grad=True)
    loss = softmax_loss(*inputs, scale, backend="triton", **options)
    loss.backward()
    return {"loss": loss.detach(), "image": inputs[0].grad, "text": inputs[1].grad, "log_scale": scale.grad}


def assert_close(got, values, magnitudes, dtype):
    for name, value in values.items():
        relative = GRADIENTS[dtype] if name in ("image", "text") else SUMS
        error = (got[name].cpu().double().squeeze() - torch.as_tensor(value, dtype=torch.float64)).abs()
        bound = relative * torch.as_tensor(magnitudes[name], dtype=torch.float64) + 1e-12
        assert bool((error <= bound).all()), f"{name}: off by {error.max():.3g}, allowed {bound.max():.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("log_scale", [0.0, math.log(1 / 0.07), math.log(112)])
@pytest.mark.parametrize("chunk_size", [None, 32, 20])
def test_equals_the_definition(dtype, log_scale, chunk_size):
    x, y = (value.to(dtype) for value in unit_pairs(75, 33))
    exact = torch.tensor(log_scale).item()
    got = value_and_gradients(x, y, log_scale, chunk_size=chunk_size)
    double = x.double(), y.double()
    assert_close(got, softmax_loss_loops(*double, exact), softmax_magnitudes(*double, exact), dtype)


@pytest.mark.default_blocks
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_as_they_are_on_a_gpu(dtype):
    x, y = (value.to(dtype) for value in unit_pairs(300, 136))
    double = x.double(), y.double()
    leaves = [value.clone().requires_grad_() for value in double]
    softmax_loss(*leaves, torch.tensor(3.0).double(), backend="eager").backward()
    got = value_and_gradients(x, y, 3.0)
    magnitudes = softmax_magnitudes(*double, 3.0)
    for name, leaf in zip(("image", "text"), leaves, strict=True):
        bound = GRADIENTS[dtype] * magnitudes[name] + 2**-25  # half of fp16's smallest step
        assert ((got[name].cpu().double() - leaf.grad).abs() <= bound).all(), name


@pytest.mark.parametrize("cosine", [-1.0, 1.0])
def test_logits_far_apart_stay_exact(cosine):
    """At a scale of 500 rows differ by 1,000: a row's maximum must be its own and not its block's."""
    x = torch.eye(40, 48)
    y = cosine * x
    y[0] = x[1]
    got = value_and_gradients(x, y, math.log(500))
    expected = softmax_loss_loops(x.double(), y.double(), torch.tensor(math.log(500)).item())
    assert got["loss"].item() == pytest.approx(expected["loss"].item(), rel=1e-6)
    torch.testing.assert_close(got["text"].cpu().double(), expected["text"], rtol=1e-4, atol=1e-6)


def test_a_value_alone():
    x, y = (value.half().to(DEVICE) for value in unit_pairs(50, 16))
    with torch.no_grad():
        loss = softmax_loss(x, y, torch.tensor(2.0, device=DEVICE), chunk_size=20, backend="triton")
    assert loss.item() == pytest.approx(
        softmax_loss_loops(x.cpu().double(), y.cpu().double(), 2.0)["loss"].item(), rel=SUMS
    )


def test_memory_that_was_never_written_is_never_read():
    """What is allocated begins as NaN here; what ragged tiles leave unwritten must not reach a sum."""
    x, y = (value.half() for value in unit_pairs(75, 33))
    plain = value_and_gradients(x, y, 1.0, chunk_size=20)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what is allocated empty
    try:
        assert torch.empty(1).isnan()
        filled = value_and_gradients(x, y, 1.0, chunk_size=20)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in plain.items():
        assert torch.equal(value, filled[name]), name
