"""What the doctor sees in the loss, in what is trained and in what it costs: each defect is planted once."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from examined import CLASSIFIER, SMALL, SYNTHETIC, case_of, drawings, found, one, png, quiet, table_data

from siglightning.commands.doctor import Origin, speed
from siglightning.commands.doctor.objective import Expected
from siglightning.commands.doctor.ring import BOUND
from siglightning.losses import self_test, sigmoid_loss, softmax_loss
from siglightning.optim import GroupRule, Schedule

BOTH = frozenset({"image tower", "text side"})


# Objective


def test_accumulation_adds_no_negatives(small, monkeypatch):
    monkeypatch.setattr(small.trainer, "accumulate_grad_batches", 4)
    text = one("negatives", small, "warning")
    assert "accumulated batches add none: 31, not 127" in text
    assert "`global_batch_size: 128`" in text


def test_few_negatives(small, monkeypatch):
    monkeypatch.setattr(small.data, "global_batch_size", 4)
    assert "only 3 negatives an image" in one("negatives", small, "warning")


def test_repeated_captions_that_are_negatives(tmp_path, monkeypatch):
    data = table_data(tmp_path, [png(image) for image in drawings(40)], ["a cat", "a dog"] * 20, global_batch_size=32)
    case = case_of(tmp_path, data=data)
    assert "all of them matched by `match_id`" in "".join(each.text for each in found("negatives", case))
    quiet("negatives", case)
    monkeypatch.setattr(case.task, "match", "none")
    assert "`match: none` takes them for negatives" in one("negatives", case, "warning")
    monkeypatch.setattr(case.task, "loss_name", "softmax")
    assert "`loss: softmax` takes them" in one("negatives", case, "warning")


@pytest.mark.parametrize("name", ["sigmoid", "softmax"])
def test_the_closed_form_is_the_loss_of_embeddings_at_one_angle(name):
    pairs, cosine, log_scale, bias = 7, 0.3, torch.tensor([1.5]), torch.tensor([-2.0])
    images = torch.eye(9)[:1].repeat(pairs, 1)
    texts = cosine * images + math.sqrt(1 - cosine**2) * torch.eye(9)[1 : 1 + pairs]
    loss = sigmoid_loss(images, texts, log_scale, bias) if name == "sigmoid" else softmax_loss(images, texts, log_scale)
    expected = Expected(name, 1, pairs - 1, math.exp(1.5), -2.0)
    assert expected.loss(cosine) == pytest.approx(loss.item(), rel=1e-5)  # fp32
    if name == "sigmoid":
        losses = [replace(expected, bias=b).loss() for b in np.linspace(-4, 1, 501)]
        assert expected.best == pytest.approx(min(losses), rel=1e-4)  # a grid of .01


def test_the_measured_loss_is_that_of_the_first_step(small):
    values = found("step 0", small)[1].values
    batch = small.first.batch
    with small.evaluating():
        images, texts = small.task.network(batch["image"], batch["text"])
        loss = small.task.loss(images, texts, batch["match_id"])
    assert values["measured"] == pytest.approx(loss.item(), rel=1e-6)
    assert values["pairs"] == 32


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [("bias", 0.0, "times that of the best b"), ("log_scale", 10.0, "t is far from what is known to train")],
)
def test_t_or_b_out_of_place(small, monkeypatch, name, value, message):
    monkeypatch.setattr(getattr(small.task.network, name), "data", torch.tensor([value]))
    text = one("step 0", small, "warning")
    assert message in text
    assert "init_" in text.partition("->")[2]


def test_a_loss_that_is_not_finite(small):
    images, texts, ids = small.embedded
    small.__dict__["embedded"] = images * torch.nan, texts, ids
    assert "not finite" in one("step 0", small, "error")


def test_weights_that_do_not_know_the_pairs(small):
    case = replace(small, origin=Origin("a.ckpt", step=5, parts=BOTH))
    assert "do not tell pairs from others here" in one("step 0", case, "error")
    _, texts, ids = case.embedded
    case.__dict__["embedded"] = texts, texts, ids  # as if every picture lay at its caption
    quiet("step 0", case)


def test_a_classifier_begins_at_equal_logits(tmp_path):
    case = case_of(tmp_path, model=CLASSIFIER)
    (finding,) = found("step 0", case)
    assert finding.level == "ok"
    assert finding.values["expected"] == pytest.approx(math.log(6), rel=1e-6)  # fp32
    with torch.no_grad():
        case.task.head.weight.mul_(1000)
    assert "begins near equal logits" in one("step 0", case, "warning")


# Settings


def test_weight_decay_on_trained_weights(small, monkeypatch):
    small.origin = Origin(pretrained=frozenset({"image_tower"}))
    assert "weight decay of 0.01 on the image_tower" in one("groups", small, "warning")
    monkeypatch.setattr(small.task, "rules", [GroupRule("network.image_tower", weight_decay_mult=0)])
    quiet("groups", replace(small))


def test_a_group_that_is_trained_at_rate_zero(small, monkeypatch):
    monkeypatch.setattr(small.task, "rules", [GroupRule("text_tower", lr_mult=0)])
    assert "trained at a learning rate of 0: text_tower" in one("groups", small, "warning")


def test_a_run_that_never_validates_or_only_warms_up(small, monkeypatch):
    monkeypatch.setattr(small.trainer, "val_check_interval", 9)
    assert "no validation within 4 steps: one comes every 9" in one("length", small, "warning")
    monkeypatch.setattr(small.task, "schedule", Schedule(warmup_steps=4))
    with pytest.raises(ValueError, match="The warm-up of 4 steps must be shorter"):  # `examine` makes it an error
        found("length", small)


# Cost


def test_a_step_that_does_not_fit_the_memory(small, monkeypatch):
    monkeypatch.setattr(small.data, "global_batch_size", 2**20)
    text = one("memory", small, "error")
    assert "a step of 1,048,576 pairs at once takes" in text
    slices = found("memory", small)[0].values["micro_batch_size"]
    assert f"`micro_batch_size: {slices}`" in text
    monkeypatch.setattr(small.task.network, "micro_batch_size", slices)
    quiet("memory", small)


def test_the_disk_forecast_is_the_size_of_a_checkpoint(tmp_path, small):
    text = one("disk", replace(small, keep_last=10**8), "error")
    assert "--checkpoint.keep_last" in text
    optimizer = small.task.configure_optimizers()["optimizer"]
    for parameter in small.task.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = [parameter.detach().clone() for parameter in small.task.parameters()]
    optimizer.step()
    torch.save({"state_dict": small.task.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "whole.ckpt")
    for parameter, value in zip(small.task.parameters(), before, strict=True):
        parameter.data.copy_(value)
    small.task.zero_grad(set_to_none=True)
    forecast = found("disk", small)[0].values["checkpoint_bytes"]
    assert (tmp_path / "whole.ckpt").stat().st_size == pytest.approx(forecast, rel=0.05)  # names and file format


def test_weights_of_sixteen_bits(small, monkeypatch):
    monkeypatch.setattr(small.trainer.precision_plugin, "precision", "bf16-true")
    assert "lose updates below 1/256" in one("precision", small, "warning")


def test_more_loading_processes_than_cores(small, monkeypatch):
    monkeypatch.setattr(small.data, "num_workers", 4096)
    assert "4096 loading processes" in one("workers", small, "warning")


def test_a_run_that_waits_for_its_data(tmp_path, monkeypatch):
    monkeypatch.setattr(speed, "LOADING_S", 0.5)
    data = {**SMALL["data"], "init_args": {**SYNTHETIC, "side": 500}}  # drawn large, then shrunk: 20 ms each
    text = one("loader", case_of(tmp_path, data=data), "warning")
    assert "the run waits for its data" in text
    assert "data.num_workers" in text


def test_a_device_that_holds_only_small_steps(small, monkeypatch):
    """The rate is that of what fits; where nothing does, it is told and no rate is made up."""
    whole, most = speed._contrastive_loss, 2

    def cramped(task, part):
        if len(part["text"]) > most:
            raise torch.OutOfMemoryError("no 3 GiB are left")
        return whole(task, part)

    monkeypatch.setattr(speed, "_contrastive_loss", cramped)
    assert speed.step_rate(small) > 0
    most = 1
    with pytest.raises(torch.OutOfMemoryError, match="not the memory for a step of two samples"):
        speed.step_rate(small)


@pytest.mark.parametrize("loss", ["sigmoid", "softmax"])
@pytest.mark.parametrize("match", ["positive", "ignore", "none"])
def test_the_ring_test_knows_the_loss(loss, match):
    settings = self_test.Settings(loss, match, "ring")
    assert self_test.largest_difference([self_test.whole_part(settings)], settings) < BOUND


def test_a_wrong_loss_fails_the_ring_test(small, monkeypatch):
    def flipped(images, texts, log_scale, bias, **options):
        return sigmoid_loss(images, texts, log_scale, -bias, **options)

    monkeypatch.setattr(self_test, "sigmoid_loss", flipped)
    text = one("ring", small, "error")
    assert "differ from the whole matrix" in text
    assert "Do not train" in text


def test_a_run_of_two_processes(tmp_path):
    case = case_of(tmp_path, "--trainer.devices=2", "--trainer.strategy=ring_ddp")
    (finding,) = found("ring", case)
    assert finding.level == "ok", finding.text
    assert finding.values["processes"] == 2
    assert "(2 x 16)" in found("negatives", case)[0].text
    for name in ("sample", "step 0", "memory", "workers", "length"):
        assert [each.text for each in found(name, case) if each.level == "error"] == []
