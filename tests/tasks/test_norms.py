"""Norms of gradients, updates and weights (SigLIP paper, Figure 5) against sums over all numbers, on real rows."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from test_contrastive import quiet_trainer, tiny_network

from siglightning.data import PictogramDataModule
from siglightning.optim import GroupRule, Schedule
from siglightning.runtime.metrics_csv import MetricsCsvLogger
from siglightning.runtime.metrics_file import read_metrics
from siglightning.tasks import ContrastiveTask

EVERY, STEPS = 3, 9


def length(tensors):
    return sum(tensor.double().square().sum().item() for tensor in tensors) ** 0.5


class Norms(Callback):
    """Computes all three at every step, from copies of its own."""

    def __init__(self):
        self.gradient, self.update, self.weights = [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        trained = [p for p in pl_module.parameters() if p.requires_grad]
        self.gradient.append(length(p.grad for p in trained))
        self.before = [p.detach().clone() for p in trained]

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trained = [p.detach() for p in pl_module.parameters() if p.requires_grad]
        self.update.append(length(after - before for after, before in zip(trained, self.before, strict=True)))
        self.weights.append(length(trained))


@pytest.mark.parametrize("clip", [None, 0.5])
def test_logged_norms_are_those_of_the_step_before_clipping_and_with_decay(tmp_path, clip):
    optimizer = partial(torch.optim.AdamW, lr=1e-3, betas=(0.9, 0.95), weight_decay=0.5)
    rules = [GroupRule("image_tower", freeze=True)]
    task = ContrastiveTask(tiny_network(), optimizer=optimizer, schedule=Schedule(0), rules=rules)
    seen, logger = Norms(), MetricsCsvLogger(tmp_path / "metrics.csv")
    trainer = quiet_trainer(
        tmp_path, max_steps=STEPS, callbacks=[seen], logger=logger, log_every_n_steps=EVERY, gradient_clip_val=clip
    )
    trainer.fit(task, PictogramDataModule(global_batch_size=32))

    metrics = read_metrics(tmp_path / "metrics.csv")
    rows = metrics["train/loss"].steps.tolist()
    assert rows == list(range(EVERY - 1, STEPS, EVERY))
    for name, values in (("grad", seen.gradient), ("update", seen.update), ("param", seen.weights)):
        found = metrics[f"train/{name}_norm"]
        assert found.steps.tolist() == rows, name
        # torch adds some 800,000 squares in fp32, one after the other on a CPU: 2.5e-5 off at most here.
        assert found.values.tolist() == pytest.approx([values[row] for row in rows], rel=1e-4), name
    assert max(seen.gradient) > 0.5, "clipping must have something to clip"
    assert task._before_update is None, "the copy of the weights is held no longer than a step"


class Gradients(Callback):
    """Copies of the gradients of each step: before the trainer clips them, and as the optimizer found them."""

    def __init__(self):
        self.before, self.after = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before.append([p.grad.clone() for p in pl_module.parameters()])

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        if len(self.after) < len(self.before):
            self.after.append([p.grad.clone() for p in pl_module.parameters()])


@pytest.mark.parametrize("algorithm", [None, "norm", "value"])
def test_gradients_are_clipped_to_the_bit_as_by_torch(tmp_path, algorithm):
    """The norm that tells whether a step is finite serves for clipping, too."""
    task, seen = ContrastiveTask(tiny_network()), Gradients()
    options = {"gradient_clip_val": 0.05, "gradient_clip_algorithm": algorithm}
    trainer = quiet_trainer(tmp_path, max_steps=3, callbacks=[seen], **options)
    trainer.fit(task, PictogramDataModule(global_batch_size=32))
    assert len(seen.before) == 3
    for before, after in zip(seen.before[:2], seen.after, strict=True):
        parameters = [torch.nn.Parameter(torch.zeros_like(gradient)) for gradient in before]
        for parameter, gradient in zip(parameters, before, strict=True):
            parameter.grad = gradient
        if algorithm == "value":
            torch.nn.utils.clip_grad_value_(parameters, 0.05)
        else:
            assert torch.nn.utils.clip_grad_norm_(parameters, 0.05) > 0.05
        assert all(torch.equal(p.grad, found) for p, found in zip(parameters, after, strict=True))
