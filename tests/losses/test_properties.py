"""Whatever the shapes, the tiles and the logits: finite, and equal to the double loop. On one rank and on three."""

import math

import pytest
import torch
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from references import sigmoid_loss_loops, softmax_loss_loops, softmax_magnitudes, unit_pairs

from siglightning.distributed.local import run_ranks
from siglightning.losses import sigmoid_loss, softmax_loss

# Reproducible, and without a deadline: two test processes share the cores.
SETTINGS = settings(derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck))
RANKS = 3
# A logit of 500 carries a rounding of 500 * 1.1e-16 * a few, which its exponential turns into a relative one.
FP64 = 1e-12 * 10

shapes = st.fixed_dictionaries(
    {
        "sizes": st.lists(st.integers(1, 9), min_size=RANKS, max_size=RANKS),
        "dim": st.integers(1, 7),
        "chunk_size": st.integers(1, 30),
        "seed": st.integers(0, 99),
        "alignment": st.sampled_from([-1.0, 0.0, 0.5, 1.0]),
        "scale": st.sampled_from([1e-3, 1.0, 10.0, 112.0, 500.0]),
        "bias": st.sampled_from([-500.0, -16.5, -10.0, 0.0, 10.0, 500.0]),
        "match": st.sampled_from([None, "positive", "ignore"]),
    }
)


def batch(case, dtype=torch.float64):
    total = sum(case["sizes"])
    x, y = unit_pairs(total, case["dim"], seed=case["seed"], alignment=case["alignment"])
    ids = torch.arange(total) // 2
    return x.to(dtype), y.to(dtype), ids


def scalars(case, dtype=torch.float64):
    return [torch.tensor([v], dtype=dtype, requires_grad=True) for v in (math.log(case["scale"]), case["bias"])]


def losses_and_gradients(case, dtype=torch.float64, rows=slice(None), **options):
    """Of both losses: name -> value."""
    found = {}
    for loss in ("sigmoid", "softmax"):
        x, y, ids = batch(case, dtype)
        x, y = (value[rows].requires_grad_() for value in (x, y))
        log_scale, bias = scalars(case, dtype)
        common = {"chunk_size": case["chunk_size"], **options}
        if loss == "sigmoid":
            matches = {"match_ids": ids[rows], "match": case["match"]} if case["match"] else {}
            value = sigmoid_loss(x, y, log_scale, bias, **common, **matches)
        else:
            value = softmax_loss(x, y, log_scale, **common)
        value.backward()
        grads = {"image": x.grad, "text": y.grad, "log_scale": log_scale.grad, "bias": bias.grad}
        found[loss] = {"loss": value.detach()} | {k: v for k, v in grads.items() if v is not None}
    return found


def references(case):
    x, y, ids = batch(case)
    log_scale = math.log(case["scale"])
    matches = (ids.tolist(), case["match"]) if case["match"] else ()
    return {
        "sigmoid": sigmoid_loss_loops(x, y, log_scale, case["bias"], *matches),
        "softmax": (softmax_loss_loops(x, y, log_scale), softmax_magnitudes(x, y, log_scale)),
    }


def assert_equal(found, case):
    for loss, (values, magnitudes) in references(case).items():
        for name, value in values.items():
            error = (found[loss][name].double().squeeze() - torch.as_tensor(value, dtype=torch.float64).squeeze()).abs()
            bound = FP64 * torch.as_tensor(magnitudes[name], dtype=torch.float64).squeeze() + 1e-300
            assert bool((error <= bound).all()), (loss, name, float(error.max()), float(bound.max()))


@settings(SETTINGS, max_examples=60)
@given(shapes)
def test_one_rank_equals_the_double_loop(case):
    assert_equal(losses_and_gradients(case), case)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@settings(SETTINGS, max_examples=60)
@given(shapes)
def test_nothing_overflows_in_lower_precision(dtype, case):
    """Logits to +-1000, and sums of a thousand terms of 1000: in fp32 arithmetic all of it is finite."""
    x, y, ids = batch(case, dtype)
    x, y = x.requires_grad_(), y.requires_grad_()
    log_scale, bias = scalars(case, torch.float32)
    value = sigmoid_loss(x, y, log_scale, bias, match_ids=ids, match=case["match"] or "positive")
    value = value + softmax_loss(x, y, log_scale)
    value.backward()
    assert value.isfinite()
    assert all(leaf.grad.float().isfinite().all() for leaf in (x, y, log_scale, bias))


def on_this_rank(cases):
    rank = dist.get_rank()
    found = []
    for number, case in enumerate(cases):
        start = sum(case["sizes"][:rank])
        rows = slice(start, start + case["sizes"][rank])
        comm = ("ring", "gather")[number % 2]
        group = dist.new_group()  # of its own: on one group every call must be like the first
        found.append(losses_and_gradients(case, rows=rows, sizes=case["sizes"], comm=comm, group=group))
    return found


@settings(SETTINGS, max_examples=2)
@given(st.lists(shapes, min_size=20, max_size=20))
def test_three_ranks_equal_the_double_loop(cases):
    for case, *ranks in zip(cases, *run_ranks(RANKS, on_this_rank, cases), strict=True):
        joined = {
            loss: {
                name: torch.cat([rank[loss][name] for rank in ranks]) / RANKS
                if name in ("image", "text")
                else torch.stack([rank[loss][name] for rank in ranks]).mean(0)
                for name in ranks[0][loss]
            }
            for loss in ranks[0]
        }
        assert_equal(joined, case)
