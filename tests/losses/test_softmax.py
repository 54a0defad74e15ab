"""`softmax_loss` against its definition and open_clip: the value and every gradient."""

import math

import pytest
import torch
from open_clip.loss import ClipLoss
from references import softmax_loss_loops, unit_pairs

from siglightning.losses import SoftmaxLoss, softmax_loss


def value_and_gradients(x, y, log_scale, dtype, **options):
    x, y = (value.detach().to(dtype).requires_grad_() for value in (x, y))
    t_prime = torch.tensor([log_scale], dtype=dtype, requires_grad=True)
    loss = softmax_loss(x, y, t_prime, **options)
    loss.backward()
    return {"loss": loss.detach(), "image": x.grad, "text": y.grad, "log_scale": t_prime.grad.squeeze()}


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-5)])
@pytest.mark.parametrize("log_scale", [0.0, math.log(10), math.log(112)])
@pytest.mark.parametrize("chunk_size", [None, 8, 5])
def test_equals_the_definition(dtype, tolerance, log_scale, chunk_size):
    x, y = unit_pairs(24, 12)
    got = value_and_gradients(x, y, log_scale, dtype, chunk_size=chunk_size)
    for name, expected in softmax_loss_loops(x, y, log_scale).items():
        # t times a difference of probabilities: the scale of each gradient's terms is t / b.
        scale = max(1.0, math.exp(log_scale) / 24)
        torch.testing.assert_close(got[name].double(), expected, rtol=tolerance, atol=tolerance * scale)


def test_equals_open_clip():
    x, y = unit_pairs(40, 16)
    expected = ClipLoss()(x, y, torch.tensor(20.0, dtype=torch.float64))
    ours = SoftmaxLoss(chunk_size=7)(image_features=x, text_features=y, logit_scale=torch.tensor(20.0).double())
    torch.testing.assert_close(ours, expected, rtol=1e-12, atol=0)


def test_untrained_loss_is_log_of_the_batch():
    same = torch.ones(32, 1, dtype=torch.float64)
    assert softmax_loss(same, same, torch.tensor(3.0)).item() == pytest.approx(math.log(32), rel=1e-6)


def test_huge_scale_does_not_overflow():
    x, y = (value.float().requires_grad_() for value in unit_pairs(16, 8))
    loss = softmax_loss(x, y, torch.tensor(math.log(500.0)))
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(x.grad).all()


def test_only_the_value_without_gradients():
    x, y = unit_pairs(16, 8)
    with torch.no_grad():
        assert not softmax_loss(x.requires_grad_(), y, torch.zeros(1)).requires_grad
