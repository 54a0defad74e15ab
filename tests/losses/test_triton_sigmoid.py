"""The fused kernel against a float64 double loop: on the CPU in Triton's interpreter, natively where there is a GPU.

Without Triton this file is skipped; whoever asks for the kernel there is told so (test_backends.py).
"""

import math

import pytest
import torch
from references import sigmoid_loss_loops, unit_pairs

triton = pytest.importorskip("triton")

from siglightning.distributed.ring import Ring  # noqa: E402
from siglightning.losses import triton_sigmoid  # noqa: E402
from siglightning.losses.inputs import Ranks  # noqa: E402
from siglightning.losses.pairs import Pairs  # noqa: E402
from siglightning.losses.sigmoid import sigmoid_loss  # noqa: E402
from siglightning.losses.triton_tiles import TILE_SCALE, Blocks  # noqa: E402

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
# Of the sum of absolute terms. The kernel's sums are in fp32 over a block and in fp64 beyond; 2e-6: some 17 roundings.
# A gradient of embeddings is rounded to its dtype, by 2**-11 at most in fp16 and 2**-8 in bf16, and its tile to fp16.
SUMS = 2e-6
GRADIENTS = {torch.float32: 2e-6, torch.float16: 2 * 2**-11, torch.bfloat16: 2**-8 + 2**-11}
SETTINGS = [(math.log(10), -10.0), (0.0, 0.0), (math.log(112), -16.5)]
IDS = [3, 1, 3, 7, 7, 3, *range(100, 165), 3, 7, 1, 8]


@pytest.fixture(autouse=True)
def small_blocks(request, monkeypatch):
    """Several blocks, ragged ones among them, from few pairs; a GPU has none so small."""
    if DEVICE == "cpu" and "default_blocks" not in request.keywords:
        monkeypatch.setattr(triton_sigmoid, "default_blocks", lambda embeds, with_ids: Blocks(16, 32, 16, group=2))


def value_and_gradients(x, y, log_scale, bias, backend="triton", **options):
    inputs = [value.detach().clone().to(DEVICE).requires_grad_() for value in (x, y)]
    scalars = [torch.tensor([value], device=DEVICE, requires_grad=True) for value in (log_scale, bias)]
    loss = sigmoid_loss(*inputs, *scalars, backend=backend, **options)
    loss.backward()
    names = ("image", "text", "log_scale", "bias")
    return {"loss": loss.detach()} | {name: value.grad for name, value in zip(names, (*inputs, *scalars), strict=True)}


def assert_close(got, values, magnitudes, dtype):
    for name, value in values.items():
        relative = GRADIENTS[dtype] if name in ("image", "text") else SUMS
        error = (got[name].cpu().double().squeeze() - torch.as_tensor(value, dtype=torch.float64)).abs()
        bound = relative * torch.as_tensor(magnitudes[name], dtype=torch.float64) + 1e-12
        assert bool((error <= bound).all()), f"{name}: off by {error.max():.3g}, allowed {bound.max():.3g}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("log_scale", "bias"), SETTINGS)
@pytest.mark.parametrize("chunk_size", [None, 32, 20])  # one tile, whole tiles, ragged ones
def test_equals_the_double_loop(dtype, log_scale, bias, chunk_size):
    x, y = (value.to(dtype) for value in unit_pairs(75, 33))  # 33: no multiple of anything
    got = value_and_gradients(x, y, log_scale, bias, chunk_size=chunk_size)
    exact = torch.tensor(log_scale).item()
    assert_close(got, *sigmoid_loss_loops(x.double(), y.double(), exact, bias), dtype)


@pytest.mark.parametrize("match", ["positive", "ignore"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk_size", [None, 20])
def test_repeated_captions_are_never_negatives(match, dtype, chunk_size):
    x, y = (value.to(dtype) for value in unit_pairs(75, 24))
    ids = torch.tensor(IDS, device=DEVICE)
    got = value_and_gradients(x, y, math.log(10), -2.0, match_ids=ids, match=match, chunk_size=chunk_size)
    exact = torch.tensor(math.log(10)).item()
    assert_close(got, *sigmoid_loss_loops(x.double(), y.double(), exact, -2.0, IDS, match), dtype)


@pytest.mark.parametrize("make", [lambda ids: torch.stack([ids, -ids], 1)[:, 0], lambda ids: ids[:1].expand(75)])
def test_ids_may_lie_anywhere(make):
    """A column of a table, one id for all: the kernel reads them one after the other."""
    x, y = (value.float() for value in unit_pairs(75, 24))
    ids = make(torch.tensor(IDS, device=DEVICE))
    assert not ids.is_contiguous()
    got = value_and_gradients(x, y, 1.0, -2.0, match_ids=ids)
    assert_close(got, *sigmoid_loss_loops(x.double(), y.double(), 1.0, -2.0, ids.tolist()), torch.float32)


@pytest.mark.parametrize("bias", [-10.0, -25.0])
def test_the_gradient_of_the_scale_does_not_drown_in_the_bias(bias):
    """Cosines near 0 beside a bias of -25: dt' as a difference of sums over logits would be off by 9e-6."""
    x, y = (value.float() for value in unit_pairs(75, 512, alignment=0.0))
    got = value_and_gradients(x, y, 0.0, bias)
    assert_close(got, *sigmoid_loss_loops(x.double(), y.double(), 0.0, bias), torch.float32)


def test_a_single_row_with_any_strides():
    """It is contiguous to torch whatever its strides are; the hardware reads them."""
    x = torch.nn.functional.normalize(torch.ones(64, 1, device=DEVICE), dim=0).T
    assert x.stride() == (1, 1)
    zero = torch.zeros(1, device=DEVICE)
    loss = sigmoid_loss(x.half(), x.half(), zero, zero, backend="triton")
    assert loss.item() == pytest.approx(math.log1p(math.exp(-1)), rel=1e-3)


@pytest.mark.default_blocks
@pytest.mark.parametrize("with_ids", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_blocks_as_they_are_on_a_gpu(dtype, with_ids):
    """300 x 300: three by two blocks of 128 x 256, or three by three where ids are compared."""
    x, y = (value.to(dtype) for value in unit_pairs(300, 136))
    ids = {"match_ids": torch.arange(300, device=DEVICE) // 2} if with_ids else {}
    got = value_and_gradients(x, y, 2.0, -5.0, **ids)
    expected = value_and_gradients(x.double(), y.double(), 2.0, -5.0, backend="eager", **ids)
    for name, value in expected.items():
        bound = GRADIENTS[dtype] * 2 if name in ("image", "text") else SUMS
        assert (got[name].double() - value).abs().max() <= bound * value.abs().max(), name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_the_tile_of_derivatives_keeps_eleven_bits(dtype):
    """Before the last rounding to bf16 its gradients are eight times as exact as those of a tile in bf16 would be."""
    x, y = (value.to(dtype).to(DEVICE) for value in unit_pairs(75, 33))
    values, magnitudes = sigmoid_loss_loops(x.cpu().double(), y.cpu().double(), 0.0, -3.0)
    zero = torch.zeros(1, device=DEVICE)
    pairs = Pairs.of(x, y, zero, zero - 3.0, None, "positive", 32, keep_dtype=True)
    blocks = triton_sigmoid.FusedBlocks(pairs, Ranks(Ring(), [75], "ring"), True, True)
    text = torch.zeros(75, 33, device=DEVICE)
    blocks.add(0, y, None, text)
    for name, found in (("image", blocks.sums().image), ("text", text)):
        error = (found.cpu().double() / 75 - values[name]).abs()
        assert (error <= 2**-11 * magnitudes[name] + 1e-12).all()
        assert (error > 2**-15 * magnitudes[name]).any()  # it is rounded: the bound is not an idle one
    assert torch.finfo(torch.float16).max >= TILE_SCALE * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("logit", [-500.0, -80.0, -10.0, 0.0, 10.0, 80.0, 500.0])
def test_extreme_logits_stay_exact(logit, dtype):
    """A positive at logit -500 costs 500 nats, and at +500 nothing; its derivative is -sigmoid(-logit)."""
    one = torch.ones(1, 1, dtype=dtype, device=DEVICE)
    bias = torch.tensor([logit - 1], device=DEVICE, requires_grad=True)
    scale = torch.zeros(1, device=DEVICE, requires_grad=True)
    loss = sigmoid_loss(one, one, scale, bias, backend="triton")
    loss.backward()
    softplus = math.log1p(math.exp(-logit)) if logit > -500 else 500.0
    derivative = -1 / (1 + math.exp(logit))
    # exp2 of a logit of 80 in units of log 2 carries the rounding of 115: 4e-6.
    assert loss.item() == pytest.approx(softplus, rel=1e-5, abs=1e-30)
    assert bias.grad.item() == pytest.approx(derivative, rel=1e-5, abs=1e-30)
    assert scale.grad.item() == pytest.approx(derivative, rel=1e-4, abs=1e-12)


def test_small_terms_keep_their_relative_precision():
    """96 x 95 negatives of 4.5e-5 each, beside positives that cost nothing: log(1 + e) would be off by 4e-4 of each."""
    x = torch.eye(96, device=DEVICE)
    scale, bias = (torch.tensor([value], device=DEVICE) for value in (math.log(40), -10.0))
    loss = sigmoid_loss(x, x, scale, bias, backend="triton")
    assert loss.item() == pytest.approx(math.log1p(math.exp(-30)) + 95 * math.log1p(math.exp(-10)), rel=3e-6)


@pytest.mark.parametrize("frozen", ["image", "text", "both", "no_grad"])
def test_frozen_towers_and_plain_values(frozen):
    x, y = (value.float() for value in unit_pairs(40, 24))
    values, _ = sigmoid_loss_loops(x.double(), y.double(), 1.5, -3.0)
    leaves = {
        "image": x.to(DEVICE).requires_grad_(frozen == "text"),
        "text": y.to(DEVICE).requires_grad_(frozen == "image"),
        "log_scale": torch.tensor(1.5, device=DEVICE, requires_grad=True),
        "bias": torch.tensor(-3.0, device=DEVICE, requires_grad=True),
    }
    with torch.set_grad_enabled(frozen != "no_grad"):
        loss = sigmoid_loss(*leaves.values(), chunk_size=20, backend="triton")
    assert loss.item() == pytest.approx(values["loss"], rel=SUMS)
    if frozen == "no_grad":
        assert not loss.requires_grad
        return
    loss.backward()
    for name, leaf in leaves.items():
        assert (leaf.grad is not None) == leaf.requires_grad
        if leaf.requires_grad:
            torch.testing.assert_close(
                leaf.grad.cpu().double(), torch.as_tensor(values[name]).double(), rtol=1e-4, atol=1e-7
            )


def test_memory_that_was_never_written_is_never_read():
    """Tiles begin as NaN here; what ragged ones leave unwritten must not reach a product."""
    x, y = (value.half() for value in unit_pairs(75, 33))
    plain = value_and_gradients(x, y, 1.0, -2.0, chunk_size=20)
    torch.use_deterministic_algorithms(True, warn_only=True)  # fills what is allocated empty
    try:
        assert torch.empty(1).isnan()
        filled = value_and_gradients(x, y, 1.0, -2.0, chunk_size=20)
    finally:
        torch.use_deterministic_algorithms(False)
    for name, value in plain.items():
        assert torch.equal(value, filled[name]), name


@pytest.mark.parametrize("dtype", DTYPES)
def test_nothing_quadratic_and_no_copy_is_kept_for_backward(dtype):
    x, y = (value.to(dtype).to(DEVICE).requires_grad_() for value in unit_pairs(96, 8))
    saved = []
    scalars = [torch.zeros(1, device=DEVICE, requires_grad=True) for _ in range(2)]
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.nbytes) or t, lambda t: t):
        sigmoid_loss(x, y, *scalars, chunk_size=32, backend="triton")
    assert sum(saved) == 2 * 96 * 8 * 4 + 8 + 8  # two gradients in fp32, two scalars in fp64


def test_fp16_gradients_survive_a_loss_scaler():
    x, y = (value.half().to(DEVICE).requires_grad_() for value in unit_pairs(64, 32))
    scalars = [torch.tensor(value, device=DEVICE) for value in (0.0, -25.0)]
    (2.0**16 * sigmoid_loss(x, y, *scalars, chunk_size=16, backend="triton")).backward()
    leaves = [value.detach().double().requires_grad_() for value in (x, y)]
    sigmoid_loss(*leaves, *scalars, backend="eager").backward()
    torch.testing.assert_close(y.grad.double() / 2**16, leaves[1].grad, rtol=1e-3, atol=1e-10)  # fp16 has 11 bits


def test_a_logit_that_is_no_number_is_told():
    """NaN in one picture reaches the loss, as everywhere else; the guard of the tasks sees it."""
    x, y = (value.float() for value in unit_pairs(40, 8))
    x[3, 2] = math.nan
    got = value_and_gradients(x, y, 1.0, -2.0)
    assert got["loss"].isnan()
    assert got["log_scale"].isnan()
    assert got["text"].isnan().any()
