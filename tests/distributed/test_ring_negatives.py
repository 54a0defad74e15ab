"""Masks of negatives on one to four real processes, against the sorted float64 matrix of the joined batch.

As in `test_ring_losses.py` every rank has other rows, and gradients are averaged as DistributedDataParallel does it.
"""

import itertools
import math

import pytest
import torch
import torch.distributed as dist
from joined import assert_equals, averaged, started_once
from references import masked_weights, sigmoid_loss_loops, unit_pairs

from siglightning.distributed.local import RanksError, run_ranks
from siglightning.losses import Negatives, sigmoid_loss

WORLD_SIZES = (1, 3, 4)
DIM = 6
LOG_SCALE, BIAS, RATIO, SEED, STEP = math.log(10), -2.0, 2.7, 11, 5
WAYS = (("ring", torch.float64), ("gather", torch.float64), ("ring", torch.float32))
CASES = {
    f"{kind}-{comm}-{'uneven' if uneven else 'even'}-{match}-{str(dtype)[6:]}": (kind, comm, uneven, match, dtype)
    for kind, (comm, dtype), uneven, match in itertools.product(
        ("random", "hard", "easy"), WAYS, (False, True), (None, "positive", "ignore")
    )
}
PAIRS = 24  # of the batch that is shared by one, two and three ranks; texts are unit vectors, so d = 24


def sizes_of(world_size, uneven):
    return [(5, 2, 7, 1)[rank] for rank in range(world_size)] if uneven else [5] * world_size


def joined_batch(world_size, uneven, dtype):
    """The whole batch, rounded to the dtype of the arithmetic, and ids of which many sit on several ranks."""
    total = sum(sizes_of(world_size, uneven))
    x, y = (value.to(dtype).double() for value in unit_pairs(total, DIM, seed=total))
    ids = torch.arange(total)
    ids[::4] = 77
    return x, y, ids


def value_and_gradients(kind, comm, uneven, match, dtype):
    rank, world_size = dist.get_rank(), dist.get_world_size()
    sizes = sizes_of(world_size, uneven)
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    x, y, ids = joined_batch(world_size, uneven, dtype)
    image, text = (value[rows].to(dtype).requires_grad_() for value in (x, y))
    log_scale, bias = (torch.tensor([value], dtype=dtype, requires_grad=True) for value in (LOG_SCALE, BIAS))
    matches = {} if match is None else {"match_ids": ids[rows], "match": match}
    value = sigmoid_loss(
        image,
        text,
        log_scale,
        bias,
        group=dist.new_group(),  # of its own: on one group every call must be like the first
        comm=comm,
        sizes=sizes if uneven else None,
        chunk_size=3,
        negatives=Negatives(kind, RATIO, SEED),
        step=STEP,
        **matches,
    )
    value.backward()
    gradients = {"image": image.grad, "text": text.grad, "log_scale": log_scale.grad, "bias": bias.grad}
    return {"loss": value.detach()} | gradients


def derivatives(kind, ratio, dtype, match):
    """This rank's rows of the derivatives by the logits, times t D / B: what is masked is zero."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    x, y = unit_pairs(PAIRS, PAIRS, seed=3)[0].to(dtype), torch.eye(PAIRS, dtype=dtype)
    rows = slice(rank * PAIRS // world_size, (rank + 1) * PAIRS // world_size)
    image = x[rows].clone().requires_grad_()
    matches = {} if match is None else {"match_ids": torch.arange(PAIRS)[rows] % 16, "match": match}
    options = {"negatives": Negatives(kind, ratio), "step": STEP, "group": dist.new_group(), "chunk_size": 5}
    sigmoid_loss(image, y[rows], torch.tensor(1.0), torch.tensor(-1.0), **options, **matches).backward()
    return image.grad


KEPT = list(
    itertools.product(
        ("random", "hard", "easy"), (1.0, 1.6, 9.5), (torch.float32, torch.bfloat16), (None, "positive", "ignore")
    )
)


def all_cases():
    cases = {name: value_and_gradients(*case) for name, case in CASES.items()} if dist.get_world_size() != 2 else {}
    return cases | ({case: derivatives(*case) for case in KEPT} if dist.get_world_size() < 4 else {})


@pytest.fixture(scope="module")
def results():
    return started_once(all_cases)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_equals_the_sorted_matrix_of_the_joined_batch(results, world_size, case):
    kind, _, uneven, match, dtype = CASES[case]
    got = averaged([rank[case] for rank in results(world_size)])
    x, y, ids = joined_batch(world_size, uneven, dtype)
    log_scale, ids = torch.tensor(LOG_SCALE, dtype=dtype).item(), ids.tolist() if match else None
    logits = (math.exp(log_scale) * x @ y.T + BIAS).tolist()
    weights, gap = masked_weights(logits, kind, RATIO, seed=SEED, step=STEP, ids=ids, match=match)
    assert gap > 1e-5  # no rounding reaches the threshold
    values, magnitudes = sigmoid_loss_loops(x, y, log_scale, BIAS, ids, match or "positive", weights)
    assert_equals(got, values, magnitudes, dtype)


@pytest.mark.parametrize("world_size", [3, 4])
def test_ring_and_gather_give_the_same_bits(results, world_size):
    for rank in results(world_size):
        for case in CASES:
            if "-gather-" in case:
                for name, value in rank[case].items():
                    assert torch.equal(value, rank[case.replace("-gather-", "-ring-")][name]), (case, name)


@pytest.mark.parametrize("case", KEPT, ids=str)
def test_as_many_are_kept_by_one_two_and_three_ranks(results, case):
    """Exactly as many, and as no logits lie within rounding of each other, the very same ones."""
    kind, ratio, dtype, match = case
    masks = [torch.cat([rank[case] for rank in results(world_size)]) != 0 for world_size in (1, 2, 3)]
    assert all(torch.equal(masks[0], mask) for mask in masks[1:])
    ids = torch.arange(PAIRS) % 16
    equal = torch.eye(PAIRS, dtype=torch.bool) if match is None else ids[:, None] == ids
    num_positives = PAIRS if match == "ignore" else int(equal.sum())
    num_kept = int((masks[0] & ~equal).sum())
    if kind == "random":
        # Binomial around ratio * positives of some 500 draws: five sigma are at most 5 * sqrt(500) / 2.
        assert num_kept == pytest.approx(ratio * num_positives, abs=56)
    elif dtype == torch.float32:
        assert num_kept == round(ratio * num_positives)
    else:  # bf16 has ties, of which each counts in part
        assert round(ratio * num_positives) <= num_kept <= round(ratio * num_positives) + 20


def make_another_call():
    rule = Negatives("hard" if dist.get_rank() < 2 else "easy", 2)
    x, y = unit_pairs(4, 4, seed=dist.get_rank())
    sigmoid_loss(x, y, torch.tensor(1.0), group=dist.group.WORLD, negatives=rule)


def ask_for_too_many():
    x, y = unit_pairs(4, 4, seed=dist.get_rank())
    sigmoid_loss(x, y, torch.tensor(1.0), group=dist.group.WORLD, negatives=Negatives("hard", 12))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (make_another_call, "negatives: expected hard, rank 2 has easy"),
        (ask_for_too_many, "at most 11, all that a global batch of 12 has for each positive, got 12"),
    ],
)
def test_all_ranks_refuse_alike(function, message):
    with pytest.raises(RanksError) as caught:
        run_ranks(3, function)
    assert all(message in error for error in caught.value.errors)
