"""`sigmoid_loss` against a float64 double loop, open_clip and transformers: the value and every gradient."""

import math

import pytest
import torch
from open_clip.loss import SigLipLoss
from references import sigmoid_loss_loops, unit_pairs
from torch.utils._python_dispatch import TorchDispatchMode

from siglightning.losses import SigmoidLoss, sigmoid_loss, softmax_loss

# fp64: the reference adds its terms one by one; 1e-12 of the sum of their absolute values is some 5,000 roundings.
# fp32: 2e-5 of the same sum. Logits near 112 carry an absolute rounding of 4e-6 * d**0.5 / 8 from their dot product,
# which the exponential turns into a relative one.
RELATIVE = {torch.float64: 1e-12, torch.float32: 2e-5}
SETTINGS = [(math.log(10), -10.0), (0.0, 0.0), (math.log(10), 0.0), (math.log(112), -16.5)]


def value_and_gradients(function, x, y, log_scale, bias, dtype, **options):
    inputs = [value.detach().to(dtype).requires_grad_() for value in (x, y)]
    scalars = [torch.tensor([value], dtype=dtype, requires_grad=True) for value in (log_scale, bias)]
    loss = function(*inputs, *scalars, **options)
    loss.backward()
    names = ("image", "text", "log_scale", "bias")
    gradients = {name: value.grad for name, value in zip(names, (*inputs, *scalars), strict=True)}
    return {"loss": loss.detach(), **gradients}


def assert_agrees(got, values, magnitudes, relative):
    for name, value in values.items():
        error = (got[name].double().squeeze() - torch.as_tensor(value, dtype=torch.float64)).abs()
        bound = relative * torch.as_tensor(magnitudes[name], dtype=torch.float64)
        assert bool((error <= bound).all()), f"{name}: off by {error.max():.3g}, allowed {bound.max():.3g}"


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("log_scale", "bias"), SETTINGS)
@pytest.mark.parametrize("chunk_size", [None, 16, 7])  # one tile, whole tiles, ragged ones
def test_equals_the_double_loop(dtype, log_scale, bias, chunk_size):
    x, y = unit_pairs(48, 24)
    x, y = x.to(dtype).double(), y.to(dtype).double()  # the reference sees the same rounded inputs
    got = value_and_gradients(sigmoid_loss, x, y, log_scale, bias, dtype, chunk_size=chunk_size)
    exact_log_scale = torch.tensor(log_scale, dtype=dtype).item()
    assert_agrees(got, *sigmoid_loss_loops(x, y, exact_log_scale, bias), RELATIVE[dtype])


@pytest.mark.parametrize("match", ["positive", "ignore"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_repeated_captions_are_never_negatives(match, dtype):
    x, y = unit_pairs(30, 16)
    x, y = x.to(dtype).double(), y.to(dtype).double()
    ids = [3, 1, 3, 7, 7, 3, *range(100, 124)]
    log_scale = torch.tensor(math.log(10), dtype=dtype).item()
    options = {"match_ids": torch.tensor(ids), "match": match, "chunk_size": 4}
    got = value_and_gradients(sigmoid_loss, x, y, log_scale, -2.0, dtype, **options)
    assert_agrees(got, *sigmoid_loss_loops(x, y, log_scale, -2.0, ids, match), RELATIVE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(("log_scale", "bias"), SETTINGS)
def test_equals_open_clip(dtype, log_scale, bias):
    """In fp32 open_clip itself rounds, so both are held against the loop's sums of absolute terms."""
    x, y = unit_pairs(64, 32)
    x, y = x.to(dtype).double(), y.to(dtype).double()
    ours = value_and_gradients(sigmoid_loss, x, y, log_scale, bias, dtype)

    def theirs_of(images, texts, t_prime, b):
        return SigLipLoss()(images, texts, t_prime.exp(), b)

    theirs = value_and_gradients(theirs_of, x, y, log_scale, bias, dtype)
    _, magnitudes = sigmoid_loss_loops(x, y, log_scale, bias)
    assert_agrees(ours, {name: value.double().squeeze() for name, value in theirs.items()}, magnitudes, RELATIVE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_equals_transformers_siglip_model(dtype):
    """`SiglipModel(return_loss=True)` and our loss on its embeddings: value, t', b and a weight deep in each tower."""
    from transformers import SiglipConfig, SiglipModel

    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    config = SiglipConfig(
        text_config={**sizes, "vocab_size": 99, "max_position_embeddings": 8},
        vision_config={**sizes, "image_size": 16, "patch_size": 8},
    )
    model = SiglipModel(config).to(dtype).eval()
    images, tokens = torch.randn(12, 3, 16, 16, dtype=dtype), torch.randint(0, 99, (12, 8))
    with torch.no_grad():
        model.logit_scale.fill_(math.log(112))
        model.logit_bias.fill_(-16.5)
    weights = {
        "log_scale": model.logit_scale,
        "bias": model.logit_bias,
        "image": model.vision_model.embeddings.patch_embedding.weight,
        "text": model.text_model.embeddings.token_embedding.weight,
    }
    out = model(input_ids=tokens, pixel_values=images, return_loss=True)
    theirs = torch.autograd.grad(out.loss, list(weights.values()), retain_graph=True)
    loss = sigmoid_loss(out.image_embeds, out.text_embeds, model.logit_scale, model.logit_bias)
    ours = torch.autograd.grad(loss, list(weights.values()))

    relative = {torch.float64: 1e-12, torch.float32: 2e-5}[dtype]
    torch.testing.assert_close(loss, out.loss, rtol=relative, atol=0)
    for name, got, expected in zip(weights, ours, theirs, strict=True):
        # Deep weights sum gradients of both signs; their largest entry stands for the sum of absolute terms.
        bound = relative * expected.abs().max() * 4
        assert (got - expected).abs().max() <= bound, name


def test_no_bias_means_zero_bias():
    x, y = unit_pairs(9, 5)
    scale = torch.tensor([1.3], dtype=torch.float64)
    without = sigmoid_loss(x, y, scale)
    assert without.item() == pytest.approx(sigmoid_loss_loops(x, y, 1.3, 0.0)[0]["loss"], rel=1e-12)


def test_value_at_the_start_is_the_closed_form():
    """Orthogonal rows: one positive costs softplus(10), each of the b - 1 negatives softplus(-10)."""
    eye = torch.eye(64, dtype=torch.float64)
    orthogonal = torch.roll(torch.eye(64, 128, dtype=torch.float64), 64, dims=1)
    loss = sigmoid_loss(torch.cat([eye, eye * 0], 1), orthogonal, torch.tensor(math.log(10.0)), torch.tensor(-10.0))
    assert loss.item() == pytest.approx(math.log1p(math.exp(10)) + 63 * math.log1p(math.exp(-10)), rel=1e-7)


@pytest.mark.parametrize("logit", [-500.0, -80.0, -10.0, 0.0, 10.0, 80.0, 500.0])
def test_extreme_logits_stay_exact_in_fp32(logit):
    """A positive at logit -500 costs 500 nats, and at +500 nothing; a negative the other way round."""
    one = torch.ones(1, 1, requires_grad=True)
    bias = torch.tensor([logit - 1], requires_grad=True)
    loss = sigmoid_loss(one, one.detach(), torch.zeros(1), bias)
    loss.backward()
    softplus = math.log1p(math.exp(-logit)) if logit > -500 else 500.0
    assert loss.item() == pytest.approx(softplus, rel=1e-6, abs=1e-30)
    assert bias.grad.item() == pytest.approx(-1 / (1 + math.exp(logit)), rel=1e-6, abs=1e-30)


def test_small_terms_keep_their_relative_precision():
    """2,048 x 2,047 negatives of 4.5e-5 each: fp32 must not lose them beside 1."""
    x = torch.zeros(2048, 4)
    x[:, 0] = 1
    y = torch.zeros(2048, 4)
    y[:, 1] = 1
    loss = sigmoid_loss(x, y, torch.tensor(0.0), torch.tensor(-10.0))
    expected = math.log1p(math.exp(10)) + 2047 * math.log1p(math.exp(-10))
    assert loss.item() == pytest.approx(expected, rel=3e-7)


class CountProducts(TorchDispatchMode):
    """Counts tile products. torch's own counter does not know `addmm_`."""

    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.total += func.overloadpacket.__name__ in ("mm", "addmm", "addmm_")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(("frozen", "products"), [("none", 3), ("image", 2), ("text", 2), ("both", 2), ("no_grad", 1)])
def test_matrix_products_per_tile(frozen, products):
    """Three products a tile, two with a frozen tower (LiT), one where only the value is asked for."""
    x, y = unit_pairs(32, 16)
    x.requires_grad_(frozen not in ("image", "both"))
    y.requires_grad_(frozen not in ("text", "both"))
    scale = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    with CountProducts() as counter, torch.set_grad_enabled(frozen != "no_grad"):
        sigmoid_loss(x, y, scale, torch.zeros(1, dtype=torch.float64), chunk_size=16)
    assert counter.total == products * 4  # four tiles


@pytest.mark.parametrize("frozen", ["image", "text", "both"])
def test_gradients_with_frozen_towers(frozen):
    x, y = unit_pairs(13, 6)
    values, _ = sigmoid_loss_loops(x, y, 1.5, -3.0)
    leaves = {
        "image": x.clone().requires_grad_(frozen == "text"),
        "text": y.clone().requires_grad_(frozen == "image"),
        "log_scale": torch.tensor(1.5, dtype=torch.float64, requires_grad=True),
        "bias": torch.tensor(-3.0, dtype=torch.float64, requires_grad=True),
    }
    sigmoid_loss(*leaves.values(), chunk_size=5).backward()
    for name, leaf in leaves.items():
        if leaf.requires_grad:
            torch.testing.assert_close(
                leaf.grad, torch.as_tensor(values[name], dtype=torch.float64), rtol=1e-11, atol=1e-13
            )
        else:
            assert leaf.grad is None


def test_fp16_gradients_survive_a_loss_scaler():
    """Some gradients lie below fp16's smallest number; scaled by 2**16 before the cast they must not become zero."""
    x, y = (value.half().requires_grad_() for value in unit_pairs(64, 32))
    scaled = 2.0**16 * sigmoid_loss(x, y, torch.tensor(0.0), torch.tensor(-25.0), chunk_size=16)
    scaled.backward()
    leaves = [value.detach().double().requires_grad_() for value in (x, y)]
    sigmoid_loss(*leaves, torch.tensor(0.0), torch.tensor(-25.0)).backward()
    torch.testing.assert_close(y.grad.double() / 2**16, leaves[1].grad, rtol=1e-3, atol=1e-10)  # fp16 has 11 bits


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_inputs_use_fp32_arithmetic_even_under_autocast(dtype):
    x, y = (value.to(dtype) for value in unit_pairs(40, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = sigmoid_loss(x, y, torch.tensor(math.log(10)), torch.tensor(-10.0))
    expected = sigmoid_loss_loops(x.double(), y.double(), math.log(10), -10.0)[0]["loss"]
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected, rel=2e-6)  # bf16 logits would be off by 1e-2


@pytest.mark.parametrize("precision", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("loss", [sigmoid_loss, softmax_loss])
def test_autocast_changes_no_gradient(loss, precision):
    """The dot product of dt' in bf16 would be off by 1e-3."""
    found = []
    for enabled in (False, True):
        leaves = [value.float().requires_grad_() for value in unit_pairs(40, 16)]
        scalars = [torch.tensor([2.0], requires_grad=True), torch.tensor([-3.0], requires_grad=True)]
        with torch.autocast("cpu", dtype=precision, enabled=enabled):
            value = loss(*leaves, *(scalars if loss is sigmoid_loss else scalars[:1]))
        value.backward()
        found.append([value.detach(), *(leaf.grad for leaf in (*leaves, *scalars) if leaf.grad is not None)])
    for plain, under_autocast in zip(*found, strict=True):
        assert torch.equal(plain, under_autocast)


def test_a_kept_graph_gives_its_gradients_again():
    """A gradient that was handed on as it is must not be one that a caller has written into."""
    x, y = (value.requires_grad_() for value in unit_pairs(9, 4))
    loss = sigmoid_loss(x, y, torch.zeros(1), torch.zeros(1))
    loss.backward(retain_graph=True)
    first = x.grad.clone()
    x.grad.zero_()
    loss.backward(retain_graph=True)
    assert torch.equal(x.grad, first)
    (3 * loss).backward()
    torch.testing.assert_close(x.grad, 4 * first)


def test_nothing_quadratic_is_kept_for_backward():
    sizes = {}
    for num_pairs in (64, 256):
        x, y = (value.float().requires_grad_() for value in unit_pairs(num_pairs, 8))
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, saved=saved: saved.append(t.nbytes) or t, lambda t: t):
            sigmoid_loss(x, y, torch.zeros(1, requires_grad=True), torch.zeros(1, requires_grad=True), chunk_size=16)
        sizes[num_pairs] = sum(saved)
    assert sizes[64] == 2 * 64 * 8 * 4 + 8 + 8  # two gradients in fp32, two scalars in fp64
    assert sizes[256] == 2 * 256 * 8 * 4 + 8 + 8


def test_module_has_the_papers_start_and_drops_into_open_clips_call():
    module = SigmoidLoss()
    assert (module.log_scale.item(), module.bias.item()) == (pytest.approx(math.log(10)), -10.0)
    assert module.log_scale.shape == module.bias.shape == (1,)
    x, y = (value.float() for value in unit_pairs(20, 8))
    scale, bias = torch.tensor(14.0, requires_grad=True), torch.tensor(-4.0, requires_grad=True)
    ours, theirs = (
        loss(image_features=x, text_features=y, logit_scale=scale, logit_bias=bias, output_dict=True)
        for loss in (module, SigLipLoss())
    )
    assert ours.keys() == theirs.keys()
    for wanted in (scale, bias):
        grads = [torch.autograd.grad(out["contrastive_loss"], wanted, retain_graph=True)[0] for out in (ours, theirs)]
        torch.testing.assert_close(*grads, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ours["contrastive_loss"], theirs["contrastive_loss"], rtol=1e-6, atol=0)


def broken(**changes):
    x = torch.eye(4)
    arguments = {"image_embeds": x, "text_embeds": x, "log_scale": torch.zeros(1), "bias": torch.zeros(1)}
    return arguments | changes


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"text_embeds": torch.eye(4)[:3]}, r"one shape \[b, d\], got \[4, 4\] and \[3, 4\]"),
        ({"text_embeds": torch.eye(4).double()}, "one floating dtype, got torch.float32 and torch.float64"),
        ({"image_embeds": torch.zeros(0, 4), "text_embeds": torch.zeros(0, 4)}, "empty batch"),
        ({"log_scale": torch.zeros(4)}, r"log_scale with one element, got shape \[4\]"),
        ({"bias": torch.zeros(2)}, r"bias with one element, got shape \[2\]"),
        ({"match_ids": torch.zeros(3, dtype=torch.int64)}, r"match_ids int64 \[4\].*got torch.int64 \[3\]"),
        ({"match_ids": torch.zeros(4)}, "got torch.float32"),
        ({"match": "negative"}, "'positive' or 'ignore', got 'negative'"),
        ({"comm": "carrier pigeon"}, "'ring' or 'gather', got 'carrier pigeon'"),
        ({"sizes": [3]}, r"each of the 1 ranks.* 4 for rank 0, got \[3\]"),
        ({"chunk_size": 0}, "at least 1 row, got 0"),
        ({"backend": "cobol"}, "got 'cobol'"),
        ({"negatives": "hard"}, "got 'hard'"),
    ],
)
def test_wrong_arguments_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        sigmoid_loss(**broken(**changes))
