"""One rank misbehaves: every other one ends with an error that names it and the step, and nothing hangs.

With five ranks not everybody is a neighbour of the culprit, and a neighbour's neighbour must not be blamed.
"""

import os
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from siglightning.distributed.local import RanksError, run_ranks
from siglightning.distributed.sentinel import GRACE_S
from siglightning.distributed.watch import set_step
from siglightning.losses import sigmoid_loss, softmax_loss

BAD_STEP, TIMEOUT_S = 3, 8.0
FAULTS = ("one pair fewer", "another dtype", "another width", "dies", "stalls", "raises")


def embeddings(fault=None):
    pairs = 3 if fault == "one pair fewer" else 4
    width = 5 if fault == "another width" else 6
    dtype = torch.float64 if fault == "another dtype" else torch.float32
    return torch.ones(pairs, width, dtype=dtype, requires_grad=True)


def impatient_group():
    """All ranks; made when all of them have started, however busy the machine is."""
    return dist.new_group(timeout=timedelta(seconds=TIMEOUT_S))


def train_until(fault, first_bad_step, loss, culprit=2):
    """Some steps; from `first_bad_step` on the culprit is at fault. Names its steps as a training loop does."""
    group, scalar = impatient_group(), torch.zeros(1, requires_grad=True)
    store = dist.distributed_c10d._get_default_store()
    for step in range(BAD_STEP + 2):
        at_fault = dist.get_rank() == culprit and step >= first_bad_step
        set_step(group, 100 + step)
        if at_fault and fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if at_fault and fault == "stalls":
            others = [rank for rank in range(dist.get_world_size()) if rank != culprit]
            store.wait([f"others have ended/{rank}" for rank in others], timedelta(seconds=120))
            return
        if at_fault and fault == "raises":
            raise MemoryError("of its own")
        x = embeddings(fault if at_fault else None)
        start = time.monotonic()
        try:
            loss(x, x, scalar, group=group).backward()
        except Exception as error:
            error.add_note(f"after {time.monotonic() - start:.1f} s")
            assert time.monotonic() - start < TIMEOUT_S + 2 * GRACE_S + 5  # a busy machine is late
            raise
        finally:
            if step in (BAD_STEP, first_bad_step):
                store.set(f"others have ended/{dist.get_rank()}", "")


@pytest.mark.parametrize(
    ("fault", "loss", "world_size", "culprit"),
    [
        *((fault, sigmoid_loss, 3, 2) for fault in FAULTS),
        ("dies", softmax_loss, 3, 1),
        ("dies", sigmoid_loss, 5, 3),
        ("stalls", sigmoid_loss, 5, 0),
        ("raises", sigmoid_loss, 2, 1),
    ],
)
def test_every_other_rank_names_the_culprit_and_the_step(fault, loss, world_size, culprit):
    with pytest.raises(RanksError) as caught:
        run_ranks(world_size, train_until, fault, BAD_STEP, loss, culprit)
    for rank, error in enumerate(caught.value.errors):
        if rank != culprit:
            message = error.strip().splitlines()[-2]
            assert f"RingError: Rank {culprit} " in message, error
            assert "step 103" in message, error
            assert "Ranks" not in message, error


@pytest.mark.parametrize("fault", ["one pair fewer", "another dtype", "another width"])
def test_at_the_first_step_every_rank_says_what_differs(fault):
    with pytest.raises(RanksError) as caught:
        run_ranks(3, train_until, fault, 0, sigmoid_loss)
    expected = {
        "one pair fewer": "at step 100. pairs: expected 4, rank 2 has 3. Give every rank the same number",
        "another dtype": "dtype: expected torch.float32, rank 2 has torch.float64. Run every rank at the same",
        "another width": "width: expected 6, rank 2 has 5. Build the same model",
    }
    for error in caught.value.errors:
        assert "ValueError: The ranks do not make the same call" in error
        assert expected[fault] in error


def test_with_two_ranks_nobody_is_the_usual_one():
    with pytest.raises(RanksError) as caught:
        run_ranks(2, train_until, "one pair fewer", 0, sigmoid_loss, 0)
    assert all("pairs: rank 0 has 3, rank 1 has 4." in error for error in caught.value.errors)


def unlike_sizes():
    x, scalar, group = torch.ones(4, 6), torch.zeros(1), impatient_group()
    sigmoid_loss(x, x, scalar, group=group, sizes=[4, 4, 4 + (dist.get_rank() == 1)])


def test_sizes_that_differ_between_ranks_are_refused():
    with pytest.raises(RanksError) as caught:
        run_ranks(3, unlike_sizes)
    assert all("sizes: expected" in error and "rank 1 has" in error for error in caught.value.errors[:2])


def one_call_more():
    """Rank 1 evaluates once more than the others; the texts of that call must not meet those of a training step."""
    x, scalar = torch.ones(4, 6, requires_grad=True), torch.zeros(1, requires_grad=True)
    group = impatient_group()
    for step in range(3):
        with torch.no_grad():
            sigmoid_loss(x, x, scalar, group=group)
            if step == 1 and dist.get_rank() == 1:
                sigmoid_loss(x, x, scalar, group=group)
        sigmoid_loss(x, x, scalar, group=group)


def test_calls_that_do_not_fit_are_not_mixed_up():
    with pytest.raises(RanksError) as caught:
        run_ranks(3, one_call_more)
    for error in caught.value.errors:
        assert "The ranks wait in different calls" in error
        assert "rank 0: call 4, sigmoid_loss with gradients; rank 1: call 4, sigmoid_loss;" in error


def test_a_rank_that_changes_its_batch_is_told_what_to_do():
    with pytest.raises(RanksError) as caught:
        run_ranks(3, train_until, "one pair fewer", BAD_STEP, sigmoid_loss)
    assert "ValueError: Rank 2 left what all ranks agreed on" in caught.value.errors[2]
    assert "pairs: expected 4, got 3. Give every rank the same number of pairs" in caught.value.errors[2]
