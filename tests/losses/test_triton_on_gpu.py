"""What only a GPU can show of the fused kernels; without one this file is skipped.

The numbers are those of test_triton_sigmoid.py and test_triton_softmax.py, which run natively where there is a GPU.
"""

import pytest
import torch
from references import unit_pairs
from torch.nn.functional import normalize

from siglightning.losses import sigmoid_loss, softmax_loss

pytest.importorskip("triton")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="without a GPU")

LOSSES = {"sigmoid": sigmoid_loss, "softmax": softmax_loss}


def leaves(pairs, dim, device="cuda", dtype=torch.bfloat16):
    """Made on the device: float64 from the host would take longer than all else."""
    made = (normalize(torch.randn(pairs, dim, device=device), dim=1).to(dtype) for _ in range(2))
    return [value.requires_grad_() for value in made]


def one_pass(loss, inputs, **options):
    scalars = [torch.tensor([value], device=inputs[0].device) for value in (2.3, -10.0)]
    value = LOSSES[loss](*inputs, *(scalars if loss == "sigmoid" else scalars[:1]), backend="triton", **options)
    value.backward()
    return value.detach()


@pytest.mark.parametrize("loss", LOSSES)
def test_auto_is_the_kernel_on_the_gpus_it_is_meant_for(loss):
    from siglightning.losses.backends import chosen_backend

    fast = torch.cuda.get_device_capability()[0] in (9, 10) and torch.version.hip is None
    assert chosen_backend("auto", leaves(4, 8)[0]) == ("triton" if fast else "eager")


@pytest.mark.parametrize("loss", LOSSES)
def test_nothing_waits_for_the_device(loss):
    inputs = leaves(3000, 256)
    scalars = [torch.tensor([value], device="cuda") for value in (2.3, -10.0)]
    arguments = [*inputs, *(scalars if loss == "sigmoid" else scalars[:1])]
    one_pass(loss, inputs, chunk_size=1024)  # compiled, and memory is there
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        LOSSES[loss](*arguments, backend="triton", chunk_size=1024).backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("loss", LOSSES)
def test_a_graph_replays_it_with_other_pairs(loss):
    inputs = leaves(2048, 256)
    scalars = [torch.tensor([value], device="cuda") for value in (2.3, -10.0)]
    arguments = [*inputs, *(scalars if loss == "sigmoid" else scalars[:1])]

    def run():
        for value in inputs:
            value.grad = None
        found = LOSSES[loss](*arguments, backend="triton", chunk_size=1024)
        found.backward()
        return found

    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    gradients = [value.grad for value in inputs]
    fresh = leaves(2048, 256)
    with torch.no_grad():
        for value, other in zip(inputs, fresh, strict=True):
            value.copy_(other)
    graph.replay()
    expected = one_pass(loss, fresh, chunk_size=1024)
    torch.testing.assert_close(captured.detach(), expected, rtol=1e-6, atol=0)
    for found, other in zip(gradients, fresh, strict=True):
        torch.testing.assert_close(found, other.grad, rtol=1e-2, atol=1e-6)  # bf16


def test_memory_of_65536_pairs_stays_below_a_gigabyte():
    """Beyond inputs and their gradients: fp32 gradients, fp16 texts and one tile."""
    inputs = leaves(65_536, 768)
    one_pass("sigmoid", leaves(4096, 768))
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    one_pass("sigmoid", inputs)
    peak = torch.cuda.max_memory_allocated() - before - sum(value.nbytes for value in inputs)
    assert peak < 1e9, f"{peak / 1e9:.2f} GB"


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="with one GPU")
def test_another_device_than_the_current_one():
    assert torch.cuda.current_device() == 0
    pairs = [value.half() for value in unit_pairs(300, 64)]
    first, second = (
        one_pass("sigmoid", [value.to(device).requires_grad_() for value in pairs]) for device in ("cuda:0", "cuda:1")
    )
    assert first.item() == second.item()
