"""Masks of negatives on one process, against a dense float64 matrix whose negatives are sorted."""

import math
from itertools import pairwise

import pytest
import torch
from references import masked_weights, random_draw, sigmoid_loss_loops, unit_pairs
from torch.utils._python_dispatch import TorchDispatchMode

from siglightning.distributed.exchange import open_exchange
from siglightning.distributed.ring import Ring
from siglightning.losses import Negatives, sigmoid_loss
from siglightning.losses.pairs import Pairs

KINDS = ("random", "hard", "easy")
# Relative to the sum of absolute terms, as in test_sigmoid.py.
RELATIVE = {torch.float64: 1e-12, torch.float32: 2e-5}


def value_and_gradients(x, y, log_scale, bias, dtype, scalar_dtype=None, **options):
    inputs = [value.detach().to(dtype).requires_grad_() for value in (x, y)]
    scalars = [torch.tensor([v], dtype=scalar_dtype or dtype, requires_grad=True) for v in (log_scale, bias)]
    loss = sigmoid_loss(*inputs, *scalars, **options)
    loss.backward()
    names = ("image", "text", "log_scale", "bias")
    return {"loss": loss.detach()} | {n: value.grad for n, value in zip(names, (*inputs, *scalars), strict=True)}


def assert_agrees(got, x, y, log_scale, bias, weights, relative, ids=None, match="positive"):
    values, magnitudes = sigmoid_loss_loops(x, y, log_scale, bias, ids, match, weights)
    for name, value in values.items():
        error = (got[name].double().squeeze() - torch.as_tensor(value, dtype=torch.float64)).abs()
        bound = relative * torch.as_tensor(magnitudes[name], dtype=torch.float64) + 1e-30  # fp32's sigmoid underflows
        assert bool((error <= bound).all()), f"{name}: off by {error.max():.3g}, allowed {bound.max():.3g}"


def dense_logits(x, y, log_scale, bias):
    return (math.exp(log_scale) * x @ y.T + bias).tolist()


def derivatives(logit_bias=-1.0, num_pairs=41, **options):
    """The derivative of the loss by every logit, times t: what is masked is zero, exactly. Texts are unit vectors."""
    x, _ = unit_pairs(num_pairs, num_pairs, seed=num_pairs)
    x = x.float().requires_grad_()
    sigmoid_loss(x, torch.eye(num_pairs), torch.tensor(2.0), torch.tensor(logit_bias), **options).backward()
    return x.grad


def off_diagonal(matrix):
    return matrix[~torch.eye(len(matrix), dtype=torch.bool)]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("match", [None, "positive", "ignore"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("chunk_size", [None, 7])
def test_equals_the_sorted_matrix(kind, match, chunk_size, dtype):
    """Value and all gradients. In fp32 too the threshold lies where no rounding reaches."""
    x, y = (value.to(dtype).double() for value in unit_pairs(30, 16))
    ids = [3, 1, 3, 7, 7, 3, *range(100, 124)] if match else None
    log_scale = torch.tensor(math.log(10), dtype=dtype).item()
    logits = dense_logits(x, y, log_scale, -2.0)
    weights, gap = masked_weights(logits, kind, 3.3, seed=5, step=8, ids=ids, match=match)
    assert gap > 1e-5  # logits near 10 are rounded by 1e-6
    matches = {"match_ids": torch.tensor(ids), "match": match} if match else {}
    rule = Negatives(kind, 3.3, seed=5)
    got = value_and_gradients(x, y, log_scale, -2.0, dtype, negatives=rule, step=8, chunk_size=chunk_size, **matches)
    assert_agrees(got, x, y, log_scale, -2.0, weights, RELATIVE[dtype], ids, match or "positive")
    assert 0 < sum(weight == 0 for row in weights for weight in row) < 30 * 30 - 60


@pytest.mark.parametrize("kind", KINDS)
def test_half_precision_inputs(kind):
    """Arithmetic is fp32, so loss, dt' and db are; gradients of embeddings are rounded to bf16's 8 bits."""
    x, y = (value.bfloat16().double() for value in unit_pairs(30, 16))
    log_scale = torch.tensor(math.log(10)).item()
    weights, gap = masked_weights(dense_logits(x, y, log_scale, -2.0), kind, 4)
    assert gap > 1e-5
    options = {"negatives": Negatives(kind, 4), "chunk_size": 8}
    got = value_and_gradients(x, y, log_scale, -2.0, torch.bfloat16, torch.float32, **options)
    exact = {name: got.pop(name) for name in ("image", "text")}
    values, magnitudes = sigmoid_loss_loops(x, y, log_scale, -2.0, weights=weights)
    for name in ("loss", "log_scale", "bias"):
        assert abs(got[name].item() - values[name]) <= RELATIVE[torch.float32] * magnitudes[name]
    for name, gradient in exact.items():
        assert bool(((gradient.double() - values[name]).abs() <= 2.0**-8 * magnitudes[name]).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias", [-1000.0, 0.0, 1000.0])
@pytest.mark.parametrize("kind", KINDS)
def test_extreme_logits(kind, bias, dtype):
    """Logits from -2000 to 2000: softplus and sigmoid saturate, the order of the logits does not."""
    x, y = (value.to(dtype).double() for value in unit_pairs(24, 8, alignment=0.0))
    log_scale = torch.tensor(math.log(1000), dtype=dtype).item()
    weights, gap = masked_weights(dense_logits(x, y, log_scale, bias), kind, 5)
    assert gap > 1e-2  # logits near 2000 are rounded by 2e-4, and by more in the product before
    got = value_and_gradients(x, y, log_scale, bias, dtype, negatives=Negatives(kind, 5), chunk_size=9)
    assert all(value.isfinite().all() for value in got.values())
    # The exponential turns the absolute rounding of a logit of 1000, 1e-4 in fp32, into a relative one.
    assert_agrees(got, x, y, log_scale, bias, weights, {torch.float64: 1e-11, torch.float32: 2e-3}[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("kind", ["hard", "easy"])
def test_when_all_logits_are_equal_each_negative_counts_its_share(kind, dtype):
    """Collapsed embeddings: 12 * 2.5 of 132 negatives, so each counts 30 / 132."""
    x = torch.zeros(12, 4, dtype=torch.float64)
    x[:, 2] = 1
    weights = [[1.0 if i == j else 30 / 132 for j in range(12)] for i in range(12)]
    got = value_and_gradients(x, x, 0.0, -1.5, dtype, negatives=Negatives(kind, 2.5), chunk_size=5)
    assert_agrees(got, x, x, 0.0, -1.5, weights, RELATIVE[dtype])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("match", [None, "positive", "ignore"])
@pytest.mark.parametrize("kind", ["hard", "easy"])
def test_ties_at_the_threshold_share_what_is_left(kind, match, dtype):
    """Entries of 1/2 make cosines of -1, -1/2 .. 1 without rounding, so dozens of logits are equal."""
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randint(0, 2, (20, 4), generator=generator).double() - 0.5 for _ in range(2))
    ids = [i // 2 for i in range(20)] if match else None
    matches = {"match_ids": torch.tensor(ids), "match": match} if match else {}
    for ratio in (1, 2.4, 6.0):
        weights, _ = masked_weights(dense_logits(x, y, 0.0, 0.0), kind, ratio, ids=ids, match=match)
        assert any(0 < weight < 1 for row in weights for weight in row)
        got = value_and_gradients(x, y, 0.0, 0.0, dtype, negatives=Negatives(kind, ratio), chunk_size=6, **matches)
        assert_agrees(got, x, y, 0.0, 0.0, weights, RELATIVE[dtype], ids, match or "positive")


@pytest.mark.parametrize("chunk_size", [None, 16, 5])
@pytest.mark.parametrize("ratio", [1, 1.6, 7.3, 39.9])
@pytest.mark.parametrize("kind", ["hard", "easy"])
def test_the_number_kept_is_exact_and_they_are_the_extreme_ones(kind, ratio, chunk_size):
    kept = derivatives(negatives=Negatives(kind, ratio), chunk_size=chunk_size) != 0
    assert int(off_diagonal(kept).sum()) == round(ratio * 41)
    assert bool(kept.diagonal().all())
    logits = unit_pairs(41, 41, seed=41)[0]
    inside, outside = (off_diagonal(logits)[off_diagonal(choice)] for choice in (kept, ~kept))
    assert inside.min() > outside.max() - 1e-6 if kind == "hard" else inside.max() < outside.min() + 1e-6


def test_every_trip_meets_the_same_logits_to_the_bit():
    """Whatever was counted is what is dropped, also where a product would round differently elsewhere."""
    x, y = (value.float() for value in unit_pairs(300, 100))
    pairs = Pairs.of(x, y, torch.tensor(2.0), torch.tensor(-3.0), None, "positive", 64)
    trips = []
    for _ in range(3):
        exchange = open_exchange("ring", Ring(), [300])
        blocks = (pairs.tiles(texts, ids, is_own=True) for _, texts, ids in pairs.blocks(exchange))
        trips.append([tile.logits.clone() for tiles in blocks for tile in tiles])
        trips.append([torch.empty(1237), *trips.pop()][1:])  # whatever else is allocated in between
    for first, second in pairwise(trips):
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("kind", KINDS)
def test_all_negatives_are_no_mask(kind):
    """A ratio of B - 1 is the loss without a mask, to the bit; so is one that repeated captions leave too few for."""
    x, y = (value.float() for value in unit_pairs(20, 8))
    plain = value_and_gradients(x, y, 1.0, -2.0, torch.float32)
    for name, value in value_and_gradients(x, y, 1.0, -2.0, torch.float32, negatives=Negatives(kind, 19)).items():
        assert torch.equal(value, plain[name])
    ids = torch.arange(20) // 4  # 80 positives, 320 negatives
    plain = sigmoid_loss(x, y, torch.tensor(1.0), match_ids=ids)
    assert torch.equal(sigmoid_loss(x, y, torch.tensor(1.0), match_ids=ids, negatives=Negatives(kind, 4.5)), plain)
    fewer = sigmoid_loss(x, y, torch.tensor(1.0), match_ids=ids, negatives=Negatives(kind, 3.9))
    assert fewer < plain


def test_a_random_mask_is_a_function_of_seed_step_row_and_column():
    def mask(step=3, seed=1, **options):
        return derivatives(negatives=Negatives("random", 8, seed=seed), step=step, **options) != 0

    first = mask()
    for i, j in ((0, 1), (7, 3), (40, 39), (12, 30)):
        assert bool(first[i, j]) == (random_draw(1, 3, i, j) < 8 / 40)
    assert torch.equal(mask(logit_bias=3.0, chunk_size=7), first)  # neither of the logits nor of the tiles
    for other in (mask(step=4), mask(seed=2), mask(seed=-1)):
        # Two independent masks of share .2 agree on a negative with probability .68; 1640 of them, 5 sigma.
        assert abs(float((off_diagonal(other) == off_diagonal(first)).double().mean()) - 0.68) < 0.06


def test_random_masks_keep_their_share_in_every_row_and_column():
    """512 x 512 draws at .25: the mean within 5 sigma; sums of rows, columns and diagonals spread as they should."""
    kept = derivatives(num_pairs=512, negatives=Negatives("random", 511 / 4)) != 0
    kept.fill_diagonal_(False)
    share = kept.double()
    assert abs(float(off_diagonal(share).mean()) - 0.25) < 5 * math.sqrt(0.25 * 0.75 / (512 * 511))
    shifted = torch.stack([share[i].roll(-i) for i in range(512)])
    for sums in (share.sum(0), share.sum(1), shifted.sum(0)[1:]):
        assert sums.var().item() == pytest.approx(511 * 0.25 * 0.75, rel=0.35)  # 5 sigma of a variance of 512 sums
    neighbours = (share[:, 1:] * share[:, :-1]).mean().item(), (share[1:] * share[:-1]).mean().item()
    assert neighbours == pytest.approx((0.0625, 0.0625), abs=0.003)


class Largest(TorchDispatchMode):
    """The most elements of any tensor that is made."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.elements = max(self.elements, tensor.numel())
        return out


@pytest.mark.parametrize("kind", KINDS)
def test_no_tensor_grows_with_the_square_of_the_batch(kind):
    """512 pairs in tiles of 64: nothing larger than the 2**16 counts or one gradient, where a matrix has 2**18."""
    x, y = (value.float().requires_grad_() for value in unit_pairs(512, 16))
    with Largest() as largest:
        sigmoid_loss(x, y, torch.tensor(2.0), negatives=Negatives(kind, 9), chunk_size=64).backward()
    assert largest.elements == (2**13 if kind == "random" else 2**16)


class CountProducts(TorchDispatchMode):
    total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.total += func.overloadpacket.__name__ in ("mm", "addmm", "addmm_")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("kind", "dtype", "products"),
    [("random", torch.float32, 3), ("hard", torch.float32, 5), ("easy", torch.float64, 7)],
)
def test_matrix_products_per_tile(kind, dtype, products):
    """One more for each trip of the radix select: two in fp32, four in fp64."""
    x, y = (value.to(dtype).requires_grad_() for value in unit_pairs(32, 16))
    with CountProducts() as counter:
        sigmoid_loss(x, y, torch.tensor(2.0), negatives=Negatives(kind, 9), chunk_size=16)
    assert counter.total == products * 4  # four tiles


@pytest.mark.parametrize("kind", KINDS)
def test_frozen_towers_and_no_gradients(kind):
    x, y = unit_pairs(17, 6)
    scale, bias = (torch.tensor(v, dtype=torch.float64) for v in (1.5, -1.0))
    weights, _ = masked_weights(dense_logits(x, y, 1.5, -1.0), kind, 2)
    values, _ = sigmoid_loss_loops(x, y, 1.5, -1.0, weights=weights)
    options = {"negatives": Negatives(kind, 2), "chunk_size": 4}
    assert sigmoid_loss(x, y, scale, bias, **options).item() == pytest.approx(values["loss"], rel=1e-12)
    for name, leaf in (("image", x), ("text", y), ("log_scale", scale), ("bias", bias)):
        leaf.requires_grad_()
        (gradient,) = torch.autograd.grad(sigmoid_loss(x, y, scale, bias, **options), leaf)
        torch.testing.assert_close(gradient, torch.as_tensor(values[name], dtype=torch.float64), rtol=1e-11, atol=1e-13)
        leaf.requires_grad_(False)


@pytest.mark.parametrize("kind", ["hard", "easy"])
def test_what_is_not_a_number_shows(kind):
    """NaN has no place in the order; its own positive tells of it."""
    x, y = (value.float() for value in unit_pairs(9, 4))
    x[4] = math.nan
    assert sigmoid_loss(x, y, torch.tensor(1.0), negatives=Negatives(kind, 2), chunk_size=4).isnan()


@pytest.mark.parametrize("kind", ["hard", "easy"])
def test_products_that_differ_from_trip_to_trip_cost_a_few_negatives_and_no_more(kind, monkeypatch):
    """Not every device repeats itself. Here each trip's logits are off by up to 1e-3, thousands of roundings."""
    tiles_of, generator = Pairs.tiles, torch.Generator().manual_seed(0)

    def shaken(self, *args, **options):
        for tile in tiles_of(self, *args, **options):
            tile.logits.add_(1e-3 * torch.rand(tile.logits.shape, generator=generator))
            yield tile

    monkeypatch.setattr(Pairs, "tiles", shaken)
    for ratio in range(2, 40):
        kept = derivatives(negatives=Negatives(kind, ratio)) != 0
        assert abs(int(off_diagonal(kept).sum()) - ratio * 41) <= 8  # 1,640 logits over some 3: one in 2e-3


def test_matched_steps_see_as_many_pairs():
    """B * B pairs a step without a mask, B * (1 + ratio) with one."""
    rule = Negatives("hard", 1.6)
    steps = rule.matched_steps(1000, 16384)
    assert steps == math.ceil(1000 * 16384 / 2.6)
    assert 0 <= steps * 16384 * 2.6 - 1000 * 16384**2 < 16384 * 2.6
    assert Negatives("hard", 15).matched_steps(7, 16) == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Negatives("hardest", 2), "'random', 'hard' or 'easy', got 'hardest'"),
        (lambda: Negatives("hard", 0.99), "ratio of at least 1, got 0.99"),
        (lambda: Negatives("easy", math.inf), "got inf"),
        (lambda: Negatives("random", math.nan), "got nan"),
        (lambda: derivatives(num_pairs=8, negatives=Negatives("hard", 7.5)), "at most 7, .* batch of 8 .* got 7.5"),
        (lambda: derivatives(num_pairs=1, negatives=Negatives("hard", 1)), "at most 0"),
        (lambda: Negatives("hard", 8).matched_steps(10, 8), "at most 7"),
        (lambda: derivatives(negatives="hard"), "siglightning.losses.Negatives or None, got 'hard'"),
    ],
)
def test_wrong_rules_are_refused(make, message):
    with pytest.raises(ValueError, match=message) as caught:
        make()
    assert "\n" not in str(caught.value)
