"""Steps that a fused optimizer leaves out on the device: those that a host which waits for every norm leaves out."""

import copy
import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from test_contrastive import quiet_trainer, tiny_network

from siglightning.data import PictogramDataModule
from siglightning.optim import Schedule
from siglightning.runtime.exits import NotFiniteError
from siglightning.tasks import ContrastiveTask, finite

STEPS = 8
FUSED = partial(torch.optim.AdamW, lr=1e-2, betas=(0.9, 0.95), weight_decay=0.1, fused=True)


class NotANumber(Callback):
    """In some steps a picture holds NaN; keeps what was logged of steps left out."""

    def __init__(self, steps):
        self.steps, self.counted, self.known = steps, [], []

    def on_train_batch_start(self, trainer, task, batch, batch_idx):
        self.known.append(task._guard.skipped)
        if trainer.global_step in self.steps:
            batch["image"] = task.network.normalise(batch["image"])
            batch["image"][1, 0, 3, 3] = float("nan")

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        self.counted.append(trainer.callback_metrics["train/skipped_steps"].item())


class SaveAt(Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def run(folder, bad, *callbacks, optimizer=FUSED, steps=STEPS, ckpt_path=None, **options):
    """Weights, the optimizer's state, what was said, and the callback."""
    task = ContrastiveTask(tiny_network(), optimizer=optimizer, schedule=Schedule(warmup_steps=2))
    seen = NotANumber(bad)
    trainer = quiet_trainer(
        folder, max_steps=steps, log_every_n_steps=1, callbacks=[seen, *callbacks], gradient_clip_val=0.5, **options
    )
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        trainer.fit(task, PictogramDataModule(global_batch_size=16), ckpt_path=ckpt_path)
    told = [str(one.message) for one in said if "is left out" in str(one.message)]
    return task.state_dict(), trainer.optimizers[0], told, seen, task


def assert_equal_states(ours, theirs):
    assert all(torch.equal(value, theirs[0][name]) for name, value in ours[0].items())
    ours, theirs = (optimizer.state_dict()["state"] for optimizer in (ours[1], theirs[1]))
    assert ours.keys() == theirs.keys()
    for number, state in ours.items():
        assert all(torch.equal(value, theirs[number][key]) for key, value in state.items()), number


@pytest.fixture
def waiting(monkeypatch):
    """From here on the host waits, as it does for optimizers that cannot leave out steps by themselves."""

    def begin():
        monkeypatch.setattr(finite, "leaves_out_by_itself", lambda optimizer: False)

    return begin


@pytest.mark.parametrize("bad", [{3, 4}, {0, 5}, {STEPS - 1}])
def test_weights_moments_and_counters_are_to_the_bit_those_of_a_host_that_waits(tmp_path, waiting, bad):
    ours = run(tmp_path, bad)
    assert not hasattr(ours[1], "found_inf"), "nobody else's step may be left out"
    waiting()
    theirs = run(tmp_path, bad)
    assert_equal_states(ours, theirs)
    steps = {int(state["step"]) for state in ours[1].state_dict()["state"].values()}
    assert steps == {STEPS - len(bad)}
    assert len(ours[2]) == len(bad)
    assert ours[2] == theirs[2], "the same steps, and the same samples"
    assert all('samples that gave numbers which are not finite: rank 0: "' in line for line in ours[2])
    assert ours[3].counted == theirs[3].counted
    assert ours[4]._guard.skipped == theirs[4]._guard.skipped == len(bad)
    clean = run(tmp_path, set())
    assert not torch.equal(clean[0]["network.image_projection.weight"], ours[0]["network.image_projection.weight"])


def test_nobody_waits_for_the_verdict(tmp_path, waiting):
    """When the next batch begins, a host that waits knows already, ours does not yet."""
    assert run(tmp_path, {3, 4})[3].known == [0, 0, 0, 0, 0, 1, 2, 2]
    waiting()
    assert run(tmp_path, {3, 4})[3].known == [0, 0, 0, 0, 1, 2, 2, 2]


def test_a_run_goes_on_to_the_bit_from_a_checkpoint_right_after_such_a_step(tmp_path):
    whole = run(tmp_path, {3, 4}, SaveAt(4, tmp_path / "at 4.ckpt"))
    assert torch.load(tmp_path / "at 4.ckpt", weights_only=True)["skipped_steps"] == 1
    resumed = run(tmp_path, {3, 4}, ckpt_path=tmp_path / "at 4.ckpt")
    assert_equal_states(resumed, whole)
    assert resumed[4]._guard.skipped == 2


def test_so_many_in_a_row_end_the_run_one_step_later_and_the_count_begins_anew_after_a_good_one(tmp_path):
    bad = set(range(1, finite.PATIENCE)) | set(range(finite.PATIENCE + 1, 100))
    with pytest.raises(NotFiniteError) as raised:
        run(tmp_path, bad, steps=60)
    last = 2 * finite.PATIENCE
    message = str(raised.value)
    assert f"not finite in {finite.PATIENCE} steps in a row, up to step {last};" in message
    assert 'rank 0: "' in message


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_gradients_are_clipped_in_bf16_mixed_where_lightning_refuses_fused_optimizers(tmp_path, algorithm):
    found = run(tmp_path, {1}, steps=3, precision="bf16-mixed", gradient_clip_algorithm=algorithm)
    assert len(found[2]) == 1


def test_fused_optimizers_are_clipped_under_a_gradient_scaler(tmp_path):
    """On a CPU Lightning makes bf16 of `16-mixed`, unless handed the plugin. The scaler leaves the second step out."""
    scaled = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=64.0))
    found = run(tmp_path, {1}, steps=4, plugins=[scaled])
    assert {int(state["step"]) for state in found[1].state_dict()["state"].values()} == {3}
    assert scaled.scaler.get_scale() == 32.0
    assert len(found[2]) == found[4]._guard.skipped == 1
    assert all(value.isfinite().all() for value in found[0].values())


def test_which_optimizers_leave_steps_out_by_themselves():
    def made(kind, **options):
        return kind([torch.nn.Parameter(torch.ones(2))], lr=0.1, **options)

    for kind in (torch.optim.Adam, torch.optim.AdamW):
        assert finite.leaves_out_by_itself(made(kind, fused=True))
        assert not finite.leaves_out_by_itself(made(kind))
    assert not finite.leaves_out_by_itself(made(torch.optim.SGD, fused=True, momentum=0.9))


@pytest.mark.parametrize(("before", "after"), [(False, True), (True, False)])
def test_a_run_goes_on_with_the_kernels_of_its_configuration(tmp_path, before, after):
    """torch takes them from the checkpoint; then the host would wait for each step, whatever was asked for."""
    options = {"lr": 1e-2, "betas": (0.9, 0.95), "weight_decay": 0.1}
    run(
        tmp_path,
        set(),
        SaveAt(2, tmp_path / "at 2.ckpt"),
        optimizer=partial(torch.optim.AdamW, **options, fused=before),
    )
    optimizer = partial(torch.optim.AdamW, **options, fused=after)
    resumed = run(tmp_path, {3}, optimizer=optimizer, ckpt_path=tmp_path / "at 2.ckpt")
    assert {group["fused"] for group in resumed[1].param_groups} == {after}
    assert {int(state["step"]) for state in resumed[1].state.values()} == {STEPS - 1}
    whole = run(tmp_path, {3}, optimizer=optimizer)
    for name, value in whole[0].items():
        # The kernels round otherwise, which AdamW magnifies where gradients are near 0; a step is 1e-2.
        torch.testing.assert_close(resumed[0][name], value, rtol=0, atol=1e-3)


def test_a_fit_after_one_that_ended_badly_begins_anew(tmp_path):
    task = ContrastiveTask(tiny_network(), optimizer=FUSED, schedule=Schedule(warmup_steps=2))
    data = PictogramDataModule(global_batch_size=16)
    broken = quiet_trainer(tmp_path, max_steps=40, log_every_n_steps=1, callbacks=[NotANumber(set(range(100)))])
    with pytest.raises(NotFiniteError):
        broken.fit(task, data)
    quiet_trainer(tmp_path, max_steps=4, log_every_n_steps=1, callbacks=[NotANumber({1})]).fit(task, data)
    assert task._guard.skipped == 1


def test_copies_of_a_task_have_no_step_under_way(tmp_path):
    """On a GPU that step has an event, which cannot be copied."""

    class Copies(Callback):
        def on_train_batch_end(self, trainer, task, outputs, batch, batch_idx):
            assert task._guard._open is not None
            self.copied = copy.deepcopy(task._guard)

    copies = Copies()
    run(tmp_path, {1}, copies, steps=3)
    assert copies.copied._open is None
    assert copies.copied.skipped == 1


def test_other_devices_than_those_tried_are_waited_for():
    """Apple's fused AdamW took no notice of `found_inf`: a first bad step would have been taken."""
    parameter = torch.nn.Parameter(torch.zeros(2))
    assert finite.leaves_out_by_itself(torch.optim.AdamW([parameter], fused=True))

    class Elsewhere:
        device = torch.device("mps")

    optimizer = torch.optim.AdamW([parameter], fused=True)
    optimizer.param_groups[0]["params"] = [Elsewhere()]
    assert not finite.leaves_out_by_itself(optimizer)
