"""Whether a loss can be captured in a CUDA graph, and whether its replay gives the same numbers for other inputs."""

from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.clock import Clock, repeats_for
from benchmarks.gpu.contestants import Contestant
from benchmarks.gpu.pairs import Inputs, make_inputs

WARM_UP = 3  # runs on a stream of its own before the capture, as torch's notes on CUDA graphs ask for


def check_graph(clock: Clock, contestant: Contestant, pairs: int, dim: int, dtype: torch.dtype) -> dict[str, Any]:
    """Capture one forward and backward pass, put other numbers into its inputs, replay, compare with a plain run.

    Returns:
        ``captured``; then either ``reason``, or ``equal`` (to the bit), ``largest_difference`` over the gradients
        relative to their largest entry, ``replay_s`` and ``plain_s``.
    """
    found: dict[str, Any] = {"name": contestant.name, "pairs": pairs, "dim": dim, "captured": False}
    reason = "needs a GPU" if not clock.is_gpu else contestant.absent(clock.device)
    if reason is not None:
        return found | {"reason": reason}
    try:
        return found | {"captured": True} | _captured(clock, contestant, pairs, dim, dtype)
    except Exception as error:  # what forbids a capture is the finding
        return found | {"reason": f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:200]}"}


def _captured(clock: Clock, contestant: Contestant, pairs: int, dim: int, dtype: torch.dtype) -> dict[str, Any]:
    fixed, other = (make_inputs(pairs, dim, dtype, clock.device, seed) for seed in (0, 1))
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(WARM_UP):
            contestant.run(fixed)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        contestant.run(fixed)
    with torch.no_grad():
        for into, value in zip(fixed.tensors, other.tensors, strict=True):
            into.copy_(value)
    graph.replay()
    replayed = _gradients(fixed)
    contestant.run(other)
    plain = _gradients(other)
    plain_s = clock.seconds(lambda: contestant.run(other))
    repeats = repeats_for(plain_s)
    return {
        "equal": all(torch.equal(a, b) for a, b in zip(replayed, plain, strict=True)),
        "largest_difference": max(_difference(a, b) for a, b in zip(replayed, plain, strict=True)),
        "replay_s": clock.seconds(graph.replay, repeats),
        "plain_s": clock.seconds(lambda: contestant.run(other), repeats),
    }


def _gradients(inputs: Inputs) -> list[Tensor]:
    return [tensor.grad.clone() for tensor in inputs.tensors if tensor.grad is not None]


def _difference(found: Tensor, expected: Tensor) -> float:
    return float((found.double() - expected.double()).abs().max() / expected.double().abs().max())
