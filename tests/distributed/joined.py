"""What ranks found, joined as DistributedDataParallel does it, and held against one process on the joined batch."""

from functools import cache

import torch

from siglightning.distributed.local import run_ranks

# 1e-12 of the sum of absolute terms is some 5,000 roundings in fp64; 2e-5 is some 170 in fp32.
RELATIVE = {torch.float64: 1e-12, torch.float32: 2e-5}


def started_once(function):
    """World size -> what the function returned on every rank; each number of processes is started once."""
    return cache(lambda world_size: run_ranks(world_size, function))


def averaged(ranks):
    """What one process on the joined batch should have found."""
    world_size = len(ranks)
    joined = {name: torch.cat([rank[name] for rank in ranks]) / world_size for name in ("image", "text")}
    shared = ranks[0].keys() - joined.keys()
    return joined | {name: torch.stack([rank[name] for rank in ranks]).double().mean(0) for name in shared}


def assert_equals(got, values, magnitudes, dtype):
    """Every value within its share of the sum of the absolute terms that it is made of."""
    for name, value in values.items():
        error = (got[name].double().squeeze() - torch.as_tensor(value, dtype=torch.float64)).abs()
        bound = RELATIVE[dtype] * torch.as_tensor(magnitudes[name], dtype=torch.float64)
        assert bool((error <= bound).all()), f"{name}: off by {error.max():.3g}, allowed {bound.max():.3g}"
