"""Gradients of texts that travel in bf16: half the bytes, and the error that is stated."""

import math

import pytest
import torch
import torch.distributed as dist
from joined import averaged, started_once
from references import sigmoid_loss_loops, softmax_loss_loops, softmax_magnitudes, unit_pairs

from siglightning.distributed.local import run_ranks
from siglightning.distributed.ring import Ring
from siglightning.losses import sigmoid_loss, softmax_loss

PAIRS, DIM = 6, 16
SCALARS = {"sigmoid": (math.log(10), -2.0), "softmax": (math.log(10),)}
LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}
CASES = [(loss, comm) for loss in LOSSES for comm in ("ring", "gather")]


def joined_batch(world_size):
    return tuple(value.float() for value in unit_pairs(PAIRS * world_size, DIM, seed=world_size))


def value_and_gradients(loss, comm, accumulators):
    rank, rows = dist.get_rank(), PAIRS
    image, text = (
        value[rank * rows : (rank + 1) * rows].clone().requires_grad_() for value in joined_batch(dist.get_world_size())
    )
    scalars = [torch.tensor([value], requires_grad=True) for value in SCALARS[loss]]
    options = {"group": dist.new_group(), "comm": comm, "accumulators": accumulators, "chunk_size": 4}
    value = LOSSES[loss](image, text, *scalars, **options)
    value.backward()
    return {"loss": value.detach(), "image": image.grad, "text": text.grad, "log_scale": scalars[0].grad}


def all_cases():
    return {
        (*case, accumulators): value_and_gradients(*case, accumulators)
        for case in CASES
        for accumulators in ("full", "bf16")
    }


@pytest.fixture(scope="module")
def results():
    return started_once(all_cases)


@pytest.mark.parametrize(("loss", "comm"), CASES)
@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
def test_gradients_of_texts_are_off_by_one_rounding_a_rank(results, world_size, loss, comm):
    """And nothing else is off at all."""
    full, rounded = (averaged([rank[loss, comm, name] for rank in results(world_size)]) for name in ("full", "bf16"))
    x, y = (value.double() for value in joined_batch(world_size))
    if loss == "sigmoid":
        values, magnitudes = sigmoid_loss_loops(x, y, *SCALARS[loss])
    else:
        values, magnitudes = softmax_loss_loops(x, y, *SCALARS[loss]), softmax_magnitudes(x, y, *SCALARS[loss])
    error = (rounded["text"].double() - values["text"]).abs()
    assert (error <= (world_size * 2**-8 + 2e-5) * magnitudes["text"]).all()
    assert torch.equal(rounded["text"], full["text"]) == (world_size == 1)  # a ring of one sends nothing
    for name in ("loss", "image", "log_scale"):
        assert torch.equal(rounded[name], full[name]), name


def bytes_sent(accumulators):
    """Bytes of gradients that this rank sends in one step."""
    sent, shift = [], Ring.shift
    Ring.shift = lambda self, leaving, arriving: sent.extend(leaving) or shift(self, leaving, arriving)
    value_and_gradients("sigmoid", "ring", accumulators)
    texts = (dist.get_world_size() - 1) * PAIRS * DIM * 4
    return sum(tensor.nbytes for tensor in sent) - texts


def bytes_of_both():
    return {name: bytes_sent(name) for name in ("full", "bf16")}


def test_half_the_bytes_travel():
    for sent in run_ranks(3, bytes_of_both):
        assert sent == {"full": 3 * PAIRS * DIM * 4, "bf16": 3 * PAIRS * DIM * 2}


def ask_differently():
    try:
        value_and_gradients("sigmoid", "ring", "bf16" if dist.get_rank() == 1 else "full")
    except ValueError as error:
        return str(error)
    return None


def test_ranks_that_differ_are_told():
    """Bytes of one type read as another would be a gradient of nonsense."""
    for message in run_ranks(3, ask_differently):
        assert "accumulators: expected full, rank 1 has bf16" in message


@pytest.mark.parametrize("loss", LOSSES)
def test_an_unknown_type_is_refused(loss):
    with pytest.raises(ValueError, match="accumulators to be 'full' or 'bf16', got 'fp8'"):
        LOSSES[loss](*joined_batch(1), torch.zeros(1), accumulators="fp8")
