"""Both losses on one to five real processes, against the float64 double loop over the joined batch.

Every rank has other rows, and with more than two ranks left is not right. Gradients are what averaging over ranks, as
DistributedDataParallel does it, makes of each rank's own.
"""

import itertools
import math

import pytest
import torch
import torch.distributed as dist
from references import sigmoid_loss_loops, softmax_loss_loops, softmax_magnitudes, unit_pairs

from siglightning.distributed.local import run_ranks
from siglightning.losses import sigmoid_loss, softmax_loss

WORLD_SIZES = (1, 2, 3, 4, 5)
DIM = 6
LOG_SCALE, BIAS = math.log(10), -2.0
DTYPES = (torch.float64, torch.float32)
# 1e-12 of the sum of absolute terms is some 5,000 roundings in fp64; 2e-5 is some 170 in fp32.
RELATIVE = {torch.float64: 1e-12, torch.float32: 2e-5}
CASES = {
    f"{loss}-{comm}-{'uneven' if uneven else 'even'}-{match}-{str(dtype)[6:]}": (loss, comm, uneven, match, dtype)
    for loss, comm, uneven, match, dtype in itertools.product(
        ("sigmoid", "softmax"), ("ring", "gather"), (False, True), (None, "positive", "ignore"), DTYPES
    )
    if loss == "sigmoid" or match is None
}


def sizes_of(world_size, uneven):
    return [(5, 2, 7, 1, 4)[rank] for rank in range(world_size)] if uneven else [4] * world_size


def joined_batch(world_size, uneven, dtype):
    """The whole batch, rounded to the dtype of the arithmetic, and ids of which many sit on several ranks."""
    total = sum(sizes_of(world_size, uneven))
    x, y = (value.to(dtype).double() for value in unit_pairs(total, DIM, seed=total))
    ids = torch.arange(total)
    ids[::3] = 77
    return x, y, ids


def value_and_gradients(loss, comm, uneven, match, dtype):
    """This rank's loss and gradients, summed over ranks where the parameter is shared."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    sizes = sizes_of(world_size, uneven)
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    x, y, ids = joined_batch(world_size, uneven, dtype)
    image, text = (value[rows].to(dtype).requires_grad_() for value in (x, y))
    log_scale, bias = (torch.tensor([value], dtype=dtype, requires_grad=True) for value in (LOG_SCALE, BIAS))
    group = dist.new_group()  # of its own: on one group every call must be like the first
    options = {"group": group, "comm": comm, "sizes": sizes if uneven else None, "chunk_size": 3}
    if loss == "softmax":
        value = softmax_loss(image, text, log_scale, **options)
    else:
        matches = {} if match is None else {"match_ids": ids[rows], "match": match}
        value = sigmoid_loss(image, text, log_scale, bias, **options, **matches)
    value.backward()
    gradients = {"image": image.grad, "text": text.grad, "log_scale": log_scale.grad, "bias": bias.grad}
    return {"loss": value.detach()} | {name: gradient for name, gradient in gradients.items() if gradient is not None}


def all_cases():
    return {name: value_and_gradients(*case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def results():
    """World size -> what every rank found in every case; each number of processes is started once."""
    found = {}

    def of(world_size):
        if world_size not in found:
            found[world_size] = run_ranks(world_size, all_cases)
        return found[world_size]

    return of


def averaged(ranks):
    """What one process on the joined batch should have found."""
    world_size = len(ranks)
    joined = {name: torch.cat([rank[name] for rank in ranks]) / world_size for name in ("image", "text")}
    shared = ranks[0].keys() - joined.keys()
    return joined | {name: torch.stack([rank[name] for rank in ranks]).double().mean(0) for name in shared}


def reference(loss, uneven, match, dtype, world_size):
    x, y, ids = joined_batch(world_size, uneven, dtype)
    log_scale = torch.tensor(LOG_SCALE, dtype=dtype).item()
    if loss == "softmax":
        return softmax_loss_loops(x, y, log_scale), softmax_magnitudes(x, y, log_scale)
    return sigmoid_loss_loops(x, y, log_scale, BIAS, ids.tolist() if match else None, match or "positive")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_equals_one_process_on_the_joined_batch(results, world_size, case):
    loss, _, uneven, match, dtype = CASES[case]
    got = averaged([rank[case] for rank in results(world_size)])
    values, magnitudes = reference(loss, uneven, match, dtype, world_size)
    for name, value in values.items():
        error = (got[name].double().squeeze() - torch.as_tensor(value, dtype=torch.float64)).abs()
        bound = RELATIVE[dtype] * torch.as_tensor(magnitudes[name], dtype=torch.float64)
        assert bool((error <= bound).all()), f"{name}: off by {error.max():.3g}, allowed {bound.max():.3g}"


@pytest.mark.parametrize("world_size", [3, 4])
def test_ring_and_gather_give_the_same_bits(results, world_size):
    """They add up the same numbers in the same order."""
    for rank in results(world_size):
        for case in CASES:
            if "-ring-" in case:
                for name, value in rank[case].items():
                    assert torch.equal(value, rank[case.replace("-ring-", "-gather-")][name]), (case, name)
