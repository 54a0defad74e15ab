"""The default optimizer is fused where torch has such a kernel, and is then the AdamW that it was."""

import torch
from test_contrastive import quiet_trainer, tiny_network

from siglightning.data import PictogramDataModule
from siglightning.optim import Schedule
from siglightning.tasks import ContrastiveTask
from siglightning.tasks.base import adamw


def plain(params):
    return torch.optim.AdamW(params, lr=1e-3, betas=(0.9, 0.95), weight_decay=1e-4)


def trained(folder, optimizer):
    task = ContrastiveTask(tiny_network(), optimizer=optimizer, schedule=Schedule(warmup_steps=3))
    trainer = quiet_trainer(folder, max_steps=12, gradient_clip_val=1.0, precision="64-true")
    trainer.fit(task, PictogramDataModule(global_batch_size=16))
    return task, trainer.optimizers[0]


def test_twelve_steps_are_those_of_the_plain_form(tmp_path):
    """Clipping and a rate that changes with each step included."""
    (ours, fused), (theirs, unfused) = trained(tmp_path, adamw), trained(tmp_path, plain)
    assert [group["fused"] for group in fused.param_groups] == [True] * len(fused.param_groups)
    assert [group["lr"] for group in fused.param_groups] == [group["lr"] for group in unfused.param_groups]
    for (name, value), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        # fp64, rounded elsewhere in the same formula
        torch.testing.assert_close(value, other, rtol=0, atol=1e-10, msg=name)


def test_parameters_for_which_there_is_no_such_kernel_have_the_plain_one():
    odd = torch.nn.Parameter(torch.ones(2, dtype=torch.complex64))
    assert not adamw([{"params": [torch.nn.Parameter(torch.ones(2)), odd]}]).defaults["fused"]
    assert not adamw(iter([torch.nn.Parameter(torch.ones(2, device="meta"))])).defaults["fused"]
