"""Figure 1 of the SigLIP paper: twelve pairs on three devices, four each, in three hops."""

import math

import torch
import torch.distributed as dist
from references import sigmoid, sigmoid_loss_loops, softplus, unit_pairs

from siglightning.distributed.local import run_ranks
from siglightning.distributed.ring import Ring

DEVICES, EACH, DIM = 3, 4, 5
LOG_SCALE, BIAS = math.log(10), -3.0
# What the figure prints: device -> whose texts it holds, first of all its own.
SCHEDULE = [[0, 2, 1], [1, 0, 2], [2, 1, 0]]


def walk():
    """One trip round the ring: at each hop the texts that are here, and the loss summed over that block, in loops."""
    rank = dist.get_rank()
    x, y = unit_pairs(DEVICES * EACH, DIM)
    rows = range(rank * EACH, (rank + 1) * EACH)
    numbers = torch.tensor(rows)  # travel beside the texts, to tell them
    steps = []
    for owner, (texts, columns) in Ring.of(dist.group.WORLD).travel((y[rows.start : rows.stop], numbers), [EACH] * 3):
        torch.testing.assert_close(texts, y[columns], rtol=0, atol=0)
        loss, derivative = 0.0, 0.0
        for i in rows:
            for j, text in zip(columns.tolist(), texts, strict=True):
                sign = 1 if i == j else -1
                logit = math.exp(LOG_SCALE) * float(x[i] @ text) + BIAS
                loss += softplus(-sign * logit)
                derivative -= sign * sigmoid(-sign * logit)
        pairs = [(i, j) for i in rows for j in columns.tolist()]
        steps.append((owner, loss, derivative, pairs))
    return steps


def test_twelve_pairs_on_three_devices():
    devices = run_ranks(DEVICES, walk)
    assert [[owner for owner, *_ in steps] for steps in devices] == SCHEDULE
    for hop in range(DEVICES):  # at every moment each block of texts is on exactly one device
        assert {devices[rank][hop][0] for rank in range(DEVICES)} == {0, 1, 2}
    seen = [pair for steps in devices for *_, pairs in steps for pair in pairs]
    assert len(seen) == len(set(seen)) == 144
    x, y = unit_pairs(DEVICES * EACH, DIM)
    values, _ = sigmoid_loss_loops(x, y, LOG_SCALE, BIAS)
    totals = [sum(step[part] for steps in devices for step in steps) / 12 for part in (1, 2)]
    torch.testing.assert_close(totals[0], float(values["loss"]), rtol=1e-12, atol=0)
    torch.testing.assert_close(totals[1], float(values["bias"]), rtol=1e-12, atol=0)
