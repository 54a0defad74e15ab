"""Nothing in a training step waits for the device, except in steps that are logged."""

import json
from collections import Counter

import host_waits
import pytest
import torch
from host_waits import HostWaits

from siglightning.cli import main

EVERY, STEPS = 4, 11
TRAINER = {
    "max_steps": STEPS,
    "log_every_n_steps": EVERY,
    "limit_val_batches": 0,
    "num_sanity_val_steps": 0,
    "gradient_clip_val": 1.0,
}
NETWORK = {
    "image_tower": {"name": "local:conv", "kwargs": {"width": 8, "depths": [1, 1], "dropout": 0.1}},
    "text_tower": {"name": "local:text_transformer", "kwargs": {"width": 16, "depth": 1, "heads": 2}},
    "embed_dim": 16,
    "micro_batch_size": 8,
}
# `match: none`, since the eager loss looks up equal captions by `nonzero`, in each tile.
CONTRASTIVE = {
    "class_path": "siglightning.tasks.ContrastiveTask",
    "init_args": {
        "network": {"class_path": "siglightning.models.TwoTower", "init_args": NETWORK | {"image_size": 32}},
        "match": "none",
    },
}
FINE_TUNING = {
    "class_path": "siglightning.tasks.FineTuneTask",
    "init_args": {
        "network": {
            "class_path": "siglightning.models.ImageEncoder",
            "init_args": {"image_tower": NETWORK["image_tower"], "image_size": 32},
        },
        "train": [{"last_n": 1}, {"last_n": 2, "from_epoch": 1}],
    },
}


def waits_of(folder, model, callback="HostWaits", trainer=None, **optimizer):
    callbacks = {"callbacks": [{"class_path": f"host_waits.{callback}"}]}
    config = {
        "model": model,
        "data": {"class_path": "PictogramDataModule", "init_args": {"global_batch_size": 16}},
        "trainer": TRAINER | callbacks | (trainer or {}),
        "test_after_fit": False,
    }
    adamw = {"class_path": "torch.optim.AdamW", "init_args": {"lr": 1e-3, "fused": True} | optimizer}
    config["model"] = model | {"init_args": model["init_args"] | {"optimizer": adamw}}
    (folder / "c.yaml").write_text(json.dumps(config))
    HostWaits.seen = []
    more = ["--trust_imports", "host_waits", "--run_dir", str(folder / "run")]
    assert main(["fit", "--config", str(folder / "c.yaml"), *more]) == 0
    # what follows the last step, checkpoints, waits for it as it must
    return [wait for wait in HostWaits.seen if wait.step < STEPS]


@pytest.mark.parametrize("model", [CONTRASTIVE, FINE_TUNING], ids=["contrastive", "fine-tuning"])
def test_only_logged_steps_wait(tmp_path, model):
    """All callbacks of `fit`, clipping, augmented pictures, dropout in slices: whatever a step has."""
    waits = waits_of(tmp_path, model)
    assert {wait.step for wait in waits if wait.where.startswith("apply_func")} >= {EVERY, 2 * EVERY}, (
        "what loggers read"
    )
    assert [wait for wait in waits if wait.step % EVERY] == []


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
@pytest.mark.parametrize("model", [CONTRASTIVE, FINE_TUNING], ids=["contrastive", "fine-tuning"])
def test_nor_does_torch_see_any_on_cuda(tmp_path, model, precision):
    options = {"accelerator": "gpu", "devices": 1, "precision": precision}
    assert waits_of(tmp_path, model, "FailsOnCuda", options) == []


def test_an_optimizer_that_cannot_leave_a_step_out_by_itself_is_waited_for_in_each(tmp_path):
    waits = waits_of(tmp_path, CONTRASTIVE, fused=False, foreach=True)
    of_guard = Counter(wait.step for wait in waits if wait.where == "finite.py:lets_pass" and wait.what == "__bool__")
    assert of_guard == dict.fromkeys(range(1, STEPS), 1)


@pytest.mark.parametrize(
    ("wait", "name"),
    [
        (lambda t: t.sum().item(), "item"),
        (lambda t: t.tolist(), "tolist"),
        (lambda t: t.cpu(), "cpu"),
        (lambda t: t.to("cpu"), "to cpu"),
        (lambda t: bool(t.sum()), "__bool__"),
        (lambda t: t.nonzero(), "nonzero"),
        (lambda t: t[t > 0], "index by a mask"),
        (lambda t: t.masked_select(t > 0), "masked_select"),
        (lambda t: t.unique(), "_unique2"),
        (lambda t: torch.tensor([1.0], device=t.device), "tensor"),
        (lambda t: t.new_tensor([1.0]), "new_tensor"),
    ],
)
def test_the_instrument_sees_waits(wait, name):
    seen = HostWaits()
    HostWaits.seen = []
    trainer = type("At", (), {"global_step": 4})
    seen.on_train_batch_start(trainer, None, None, 0)
    try:
        wait(torch.tensor([1.0, 0.0, 2.0]))
    finally:
        seen.close()
    assert (5, name) in [(one.step, one.what) for one in HostWaits.seen]


def test_and_nothing_where_the_device_goes_on():
    seen = HostWaits()
    HostWaits.seen = []
    seen.on_train_batch_start(type("At", (), {"global_step": 4}), None, None, 0)
    try:
        values = torch.arange(3.0)
        values[values > 1] = 0.0
        (values.to("cpu", non_blocking=True) + values.clamp(0).sum() * torch.full((), 2.0)).isfinite()
    finally:
        seen.close()
    assert HostWaits.seen == []
    assert host_waits.Wait._fields == ("step", "what", "where")
