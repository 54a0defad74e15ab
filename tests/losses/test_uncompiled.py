"""A training step that is compiled as a whole leaves the loss alone and gives the same gradients."""

import pytest
import torch
from references import unit_pairs
from torch import nn
from torch._dynamo.utils import counters
from torch.nn.functional import normalize

from siglightning.losses import SigmoidLoss, SoftmaxLoss


@pytest.mark.parametrize("module", [SigmoidLoss, SoftmaxLoss])
def test_a_compiled_step_has_no_tile_in_its_graphs(module):
    """Nine tiles of three products each, unrolled, would be some hundred calls."""
    x, y = (value.float() for value in unit_pairs(40, 8))
    torch.manual_seed(0)
    projection, loss = nn.Linear(8, 8), module(chunk_size=16, group=None)

    def step(images, texts):
        return 2 * loss(normalize(projection(images), dim=1), texts)

    torch._dynamo.reset()
    counters.clear()
    found = []
    for run in (step, torch.compile(step, backend="aot_eager")):
        projection.zero_grad(), loss.zero_grad()
        value = run(x, y)
        value.backward()
        found.append([value.detach(), projection.weight.grad.clone(), loss.log_scale.grad.clone()])
    for plain, compiled in zip(*found, strict=True):
        torch.testing.assert_close(compiled, plain, rtol=1e-5, atol=1e-6)
    assert 1 <= counters["stats"]["calls_captured"] <= 8
