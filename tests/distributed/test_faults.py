"""One of three ranks misbehaves: every other one ends with an error that names it and the step, and nothing hangs."""

import os
import signal
import time
from datetime import timedelta

import pytest
import torch
import torch.distributed as dist

from siglightning.distributed.local import RanksError, run_ranks
from siglightning.distributed.watch import GRACE_S, set_step
from siglightning.losses import sigmoid_loss, softmax_loss

CULPRIT, BAD_STEP, TIMEOUT_S = 2, 3, 6.0
FAULTS = ("one pair fewer", "another dtype", "another width", "dies", "stalls", "raises")


def embeddings(fault=None):
    pairs = 3 if fault == "one pair fewer" else 4
    width = 5 if fault == "another width" else 6
    dtype = torch.float64 if fault == "another dtype" else torch.float32
    return torch.ones(pairs, width, dtype=dtype, requires_grad=True)


def train_until(fault, first_bad_step, loss):
    """Some steps; from `first_bad_step` on the culprit is at fault. Names its steps as a training loop does."""
    group, scalar = dist.group.WORLD, torch.zeros(1, requires_grad=True)
    store = dist.distributed_c10d._get_default_store()
    for step in range(BAD_STEP + 2):
        at_fault = dist.get_rank() == CULPRIT and step >= first_bad_step
        set_step(group, 100 + step)
        if at_fault and fault == "dies":
            os.kill(os.getpid(), signal.SIGKILL)
        if at_fault and fault == "stalls":
            store.wait(["others have ended/0", "others have ended/1"], timedelta(seconds=120))
            return
        if at_fault and fault == "raises":
            raise MemoryError("of its own")
        x = embeddings(fault if at_fault else None)
        start = time.monotonic()
        try:
            loss(x, x, scalar, group=group).backward()
        except Exception as error:
            error.add_note(f"after {time.monotonic() - start:.1f} s")
            assert time.monotonic() - start < TIMEOUT_S + GRACE_S + 5  # a busy machine is late
            raise
        finally:
            if step in (BAD_STEP, first_bad_step):
                store.set(f"others have ended/{dist.get_rank()}", "")


@pytest.mark.parametrize(("fault", "loss"), [*((fault, sigmoid_loss) for fault in FAULTS), ("dies", softmax_loss)])
def test_every_other_rank_names_the_culprit_and_the_step(fault, loss):
    with pytest.raises(RanksError) as caught:
        run_ranks(3, train_until, fault, BAD_STEP, loss, timeout_s=TIMEOUT_S)
    for rank, error in enumerate(caught.value.errors):
        if rank != CULPRIT:
            message = error.strip().splitlines()[-2]
            assert "RingError: Rank 2 " in message, error
            assert "at step 103" in message, error


@pytest.mark.parametrize("fault", ["one pair fewer", "another dtype", "another width"])
def test_at_the_first_step_every_rank_says_what_differs(fault):
    with pytest.raises(RanksError) as caught:
        run_ranks(3, train_until, fault, 0, sigmoid_loss, timeout_s=TIMEOUT_S)
    expected = {
        "one pair fewer": "at step 100. pairs: expected 4, rank 2 has 3. Give every rank the same number",
        "another dtype": "dtype: expected torch.float32, rank 2 has torch.float64. Run every rank at the same",
        "another width": "width: expected 6, rank 2 has 5. Build the same model",
    }
    for error in caught.value.errors:
        assert "ValueError: The ranks do not make the same call" in error
        assert expected[fault] in error


def test_a_rank_that_changes_its_batch_is_told_what_to_do():
    with pytest.raises(RanksError) as caught:
        run_ranks(3, train_until, "one pair fewer", BAD_STEP, sigmoid_loss, timeout_s=TIMEOUT_S)
    assert "ValueError: Rank 2 left what all ranks agreed on" in caught.value.errors[CULPRIT]
    assert "pairs: expected 4, got 3. Give every rank the same number of pairs" in caught.value.errors[CULPRIT]
