"""Both losses on one to five real processes, against the float64 double loop over the joined batch.

Every rank has other rows, and with more than two ranks left is not right. Gradients are what averaging over ranks, as
DistributedDataParallel does it, makes of each rank's own. Where Triton is, its kernel's blocks go round as well.
"""

import itertools
import math
from importlib.util import find_spec

import pytest
import torch
import torch.distributed as dist
from joined import assert_equals, averaged, started_once
from references import sigmoid_loss_loops, softmax_loss_loops, softmax_magnitudes, unit_pairs

from siglightning.losses import sigmoid_loss, softmax_loss

WORLD_SIZES = (1, 2, 3, 4, 5)
DIM = 6
LOG_SCALE, BIAS = math.log(10), -2.0
DTYPES = (torch.float64, torch.float32)
BACKENDS = ("eager", "triton") if find_spec("triton") else ("eager",)
CASES = {
    f"{loss}-{backend}-{comm}-{'uneven' if uneven else 'even'}-{match}-{str(dtype)[6:]}": (
        {"loss": loss, "backend": backend, "comm": comm, "uneven": uneven, "match": match, "dtype": dtype}
    )
    for loss, backend, comm, uneven, match, dtype in itertools.product(
        ("sigmoid", "softmax"), BACKENDS, ("ring", "gather"), (False, True), (None, "positive", "ignore"), DTYPES
    )
    if (loss == "sigmoid" or match is None) and (backend == "eager" or (uneven and dtype == torch.float32))
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


def value_and_gradients(loss, backend, comm, uneven, match, dtype):
    """This rank's loss and gradients, summed over ranks where the parameter is shared."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    sizes = sizes_of(world_size, uneven)
    rows = slice(sum(sizes[:rank]), sum(sizes[: rank + 1]))
    x, y, ids = joined_batch(world_size, uneven, dtype)
    image, text = (value[rows].to(dtype).requires_grad_() for value in (x, y))
    log_scale, bias = (torch.tensor([value], dtype=dtype, requires_grad=True) for value in (LOG_SCALE, BIAS))
    group = dist.new_group()  # of its own: on one group every call must be like the first
    options = {"group": group, "comm": comm, "sizes": sizes if uneven else None, "chunk_size": 3, "backend": backend}
    if loss == "softmax":
        value = softmax_loss(image, text, log_scale, **options)
    else:
        matches = {} if match is None else {"match_ids": ids[rows], "match": match}
        value = sigmoid_loss(image, text, log_scale, bias, **options, **matches)
    value.backward()
    gradients = {"image": image.grad, "text": text.grad, "log_scale": log_scale.grad, "bias": bias.grad}
    return {"loss": value.detach()} | {name: gradient for name, gradient in gradients.items() if gradient is not None}


def all_cases():
    return {name: value_and_gradients(**case) for name, case in CASES.items()}


@pytest.fixture(scope="module")
def results():
    return started_once(all_cases)


def reference(loss, uneven, match, dtype, world_size):
    x, y, ids = joined_batch(world_size, uneven, dtype)
    log_scale = torch.tensor(LOG_SCALE, dtype=dtype).item()
    if loss == "softmax":
        return softmax_loss_loops(x, y, log_scale), softmax_magnitudes(x, y, log_scale)
    return sigmoid_loss_loops(x, y, log_scale, BIAS, ids.tolist() if match else None, match or "positive")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("world_size", WORLD_SIZES)
def test_equals_one_process_on_the_joined_batch(results, world_size, case):
    setting = {name: value for name, value in CASES[case].items() if name not in ("backend", "comm")}
    got = averaged([rank[case] for rank in results(world_size)])
    assert_equals(got, *reference(**setting, world_size=world_size), setting["dtype"])


@pytest.mark.parametrize("world_size", [3, 4])
def test_ring_and_gather_give_the_same_bits(results, world_size):
    """They add up the same numbers in the same order."""
    for rank in results(world_size):
        for case in CASES:
            if "-ring-" in case:
                for name, value in rank[case].items():
                    assert torch.equal(value, rank[case.replace("-ring-", "-gather-")][name]), (case, name)
