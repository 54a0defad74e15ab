"""What a rank keeps for backward, and what it holds at most, as ranks are added while the local batch stays."""

import itertools
import weakref
from collections import Counter

import pytest
import torch
import torch.distributed as dist
from references import unit_pairs
from torch.utils._python_dispatch import TorchDispatchMode

from siglightning.distributed.local import run_ranks
from siglightning.losses import sigmoid_loss, softmax_loss

PAIRS, DIM, CHUNK = 24, 8, 8
LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}


class LiveBytes(TorchDispatchMode):
    """The largest number of bytes in storages that were made inside and alive at once."""

    def __init__(self):
        super().__init__()
        self.holders, self.bytes, self.live, self.peak = Counter(), {}, 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        known = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, torch.Tensor)}
        for tensor in out if isinstance(out, (tuple, list)) else (out,):
            if isinstance(tensor, torch.Tensor):
                self.add(tensor, known)
        return out

    def add(self, tensor, known):
        storage = tensor.untyped_storage()
        address = storage.data_ptr()
        if address in known and address not in self.bytes:
            return  # a view of an input
        self.holders[address] += 1
        if self.holders[address] == 1:
            self.bytes[address] = storage.nbytes()
            self.live += storage.nbytes()
            self.peak = max(self.peak, self.live)
        weakref.finalize(tensor, self.drop, address)

    def drop(self, address):
        self.holders[address] -= 1
        if not self.holders[address]:
            self.live -= self.bytes.pop(address)


def kept_and_peak(name, comm, pairs, group):
    """Bytes that autograd keeps beside inputs, and the most that are alive in the forward pass."""
    x, y = (value.float().requires_grad_() for value in unit_pairs(pairs, DIM, seed=dist.get_rank()))
    scalars = [torch.zeros(1, requires_grad=True) for _ in range(2 if name == "sigmoid" else 1)]
    options = {"group": group, "comm": comm, "sizes": [pairs] * group.size(), "chunk_size": CHUNK}
    LOSSES[name](x, y, *scalars, **options)  # the first call also compares notes
    saved, live = [], LiveBytes()
    hooks = torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t)
    with hooks, live:
        LOSSES[name](x, y, *scalars, **options)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved), live.peak


def all_on_this_rank():
    groups = {comm: dist.new_group() for comm in ("ring", "gather")}  # on one group all calls must be alike
    cases = itertools.product(LOSSES, groups, (PAIRS, 2 * PAIRS))
    return {case: kept_and_peak(*case, groups[case[1]]) for case in cases}


@pytest.fixture(scope="module")
def measured():
    """World size -> case -> (kept, peak) of the rank with most."""
    found = {}
    for world_size in (2, 3, 8):
        ranks = run_ranks(world_size, all_on_this_rank)
        found[world_size] = {case: max(rank[case] for rank in ranks) for case in ranks[0]}
    return found


@pytest.mark.parametrize("comm", ["ring", "gather"])
@pytest.mark.parametrize(("name", "scalars"), [("sigmoid", 2 * 8), ("softmax", 8)])
def test_kept_bytes_are_the_gradients_on_any_number_of_ranks(measured, name, scalars, comm):
    """Two gradients in fp32 and scalars in fp64; nothing quadratic, nothing of other ranks."""
    for world_size, pairs in itertools.product(measured, (PAIRS, 2 * PAIRS)):
        assert measured[world_size][name, comm, pairs][0] == 2 * pairs * DIM * 4 + scalars


@pytest.mark.parametrize("name", LOSSES)
def test_a_ring_needs_no_more_memory_for_more_ranks(measured, name):
    """From three ranks on blocks and accumulators are under way at once; gathered blocks grow with the ranks."""
    ring, gathered = ([measured[size][name, comm, PAIRS][1] for size in (3, 8)] for comm in ("ring", "gather"))
    assert ring[1] == ring[0]
    assert gathered[1] - gathered[0] >= (8 - 3) * PAIRS * DIM * 4


@pytest.mark.parametrize("name", LOSSES)
def test_memory_of_a_ring_grows_with_the_batch_not_its_square(measured, name):
    once, twice = (measured[8][name, "ring", pairs][1] for pairs in (PAIRS, 2 * PAIRS))
    assert twice < 2.05 * once
