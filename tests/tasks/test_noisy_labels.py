"""The five kinds of label noise of the SigLIP paper (section 4.10) with both losses, on real rows."""

import math

import pytest
import torch
from references import sigmoid_loss_loops
from test_contrastive import Recorder, quiet_trainer, tiny_network

from siglightning.data import LabelNoise, PictogramDataModule
from siglightning.optim import Schedule
from siglightning.tasks import ContrastiveTask

KINDS = [(), ("image",), ("text",), ("alignment",), ("image", "text"), ("image", "text", "alignment")]


def dense_loss(loss, images, texts):
    """In float64, from the whole table of logits; no two of these captions match."""
    x, y = images.double(), texts.double()
    if loss == "sigmoid":
        return sigmoid_loss_loops(x, y, math.log(10), -10.0)[0]["loss"]
    logits = 10 * x @ y.T
    return -((logits.log_softmax(0).diag() + logits.log_softmax(1).diag()).mean() / 2).item()


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
def test_both_losses_train_on_every_kind(tmp_path, loss):
    """The first loss is that of the corrupted batch, each kind's its own, and steps follow."""
    first = []
    for kinds in KINDS:
        network = tiny_network(init_bias=None if loss == "softmax" else -10.0)
        recorder = Recorder()
        task = ContrastiveTask(network, loss=loss, match="none", schedule=Schedule(0))
        noise = LabelNoise(kinds, 0.5) if kinds else None
        data = PictogramDataModule(global_batch_size=12, noise=noise)
        quiet_trainer(tmp_path, max_steps=2, callbacks=[recorder]).fit(task, data)
        with torch.no_grad():
            fresh = tiny_network(init_bias=None if loss == "softmax" else -10.0).train()
            images, texts = fresh(*recorder.batches[0])
        assert recorder.losses[0] == pytest.approx(dense_loss(loss, images, texts), rel=1e-5), kinds
        assert all(math.isfinite(value) for value in recorder.losses)
        first.append(recorder.losses[0])
    assert len(set(first)) == len(KINDS)
