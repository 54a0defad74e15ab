"""The losses without Lightning: a plain loop under DistributedDataParallel, and in the place of open_clip's loss."""

import copy

import pytest
import torch
import torch.distributed as dist
from open_clip.loss import ClipLoss, SigLipLoss
from references import unit_pairs
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from siglightning.distributed.local import run_ranks
from siglightning.losses import SigmoidLoss, SoftmaxLoss, sigmoid_loss
from siglightning.models import TowerConfig, TwoTower

PAIRS, STEPS = 4, 3


def towers():
    torch.manual_seed(0)
    image = TowerConfig("local:conv", kwargs={"width": 8, "depths": [1], "groups": 4})
    text = TowerConfig("local:text_transformer", kwargs={"width": 16, "depth": 1, "heads": 2})
    return TwoTower(image, text, embed_dim=8, context_length=6, image_size=16).double()


def batches(num_pairs):
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        image = torch.randint(0, 256, (num_pairs, 3, 16, 16), generator=generator, dtype=torch.uint8)
        yield image, torch.randint(1, 49000, (num_pairs, 6), generator=generator)


def plain_loop(model, group, rows):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    network = model.module if isinstance(model, DistributedDataParallel) else model
    for image, text in batches(3 * PAIRS):
        x, y = model(image[rows], text[rows])
        sigmoid_loss(x, y, network.log_scale, network.bias, group=group).backward()
        optimizer.step()
        optimizer.zero_grad()
    return network.state_dict()


def plain_loop_on_this_rank():
    rows = slice(dist.get_rank() * PAIRS, (dist.get_rank() + 1) * PAIRS)
    return plain_loop(DistributedDataParallel(towers()), dist.group.WORLD, rows)


def test_a_plain_loop_on_three_ranks_ends_like_one_on_one():
    one = plain_loop(towers(), None, slice(None))
    start = towers().state_dict()
    assert max(float((one[key] - start[key]).abs().max()) for key in one) > 1e-3
    for state in run_ranks(3, plain_loop_on_this_rank):
        for key, value in one.items():
            torch.testing.assert_close(state[key], value, atol=1e-12, rtol=0)  # fp64, weights of order 1


class Model(nn.Module):
    """What open_clip's models hand to their loss: features and a linear scale."""

    def __init__(self, has_bias):
        super().__init__()
        self.image, self.text = nn.Linear(6, 6), nn.Linear(6, 6)
        self.log_scale = nn.Parameter(torch.tensor(2.0))
        self.logit_bias = nn.Parameter(torch.tensor(-4.0)) if has_bias else None

    def forward(self, x, y):
        features = (nn.functional.normalize(tower(value), dim=1) for tower, value in ((self.image, x), (self.text, y)))
        bias = () if self.logit_bias is None else (self.logit_bias,)
        return *features, self.log_scale.exp(), *bias


def gradients_of_both(sigmoid):
    """Gradients after averaging, with open_clip's loss and with ours, called in the same way."""
    rank, size = dist.get_rank(), dist.get_world_size()
    theirs = SigLipLoss(rank=rank, world_size=size) if sigmoid else None
    theirs = theirs or ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=size)
    ours = SigmoidLoss() if sigmoid else SoftmaxLoss()
    torch.manual_seed(0)
    model = Model(has_bias=sigmoid).double()
    x, y = unit_pairs(3 * PAIRS, 6)
    rows = slice(rank * PAIRS, (rank + 1) * PAIRS)
    found = []
    for loss in (theirs, ours):
        wrapped = DistributedDataParallel(copy.deepcopy(model))
        loss(*wrapped(x[rows], y[rows]), output_dict=True)["contrastive_loss"].backward()
        found.append({name: p.grad for name, p in wrapped.module.named_parameters()})
    return found


@pytest.mark.parametrize("sigmoid", [True, False])
def test_modules_stand_in_for_open_clips(sigmoid):
    """Three ranks, where a loss over local negatives would give other gradients."""
    for theirs, ours in run_ranks(3, gradients_of_both, sigmoid):
        assert {"image.weight", "text.weight", "log_scale"} <= theirs.keys()
        for name, gradient in theirs.items():
            torch.testing.assert_close(ours[name], gradient, rtol=1e-9, atol=1e-12)  # fp64
