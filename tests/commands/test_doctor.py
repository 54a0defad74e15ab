"""Each check of the doctor sees the defect it is there for, planted once, and is quiet without it."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from examined import IMAGE, NETWORK, SMALL, SYNTHETIC, TEXT, case_of, drawings, found, one, png, quiet, table_data

from siglightning.commands.doctor import Origin, examine
from siglightning.commands.doctor.findings import Finding, NamedCheck
from siglightning.commands.doctor.objective import Expected
from siglightning.commands.doctor.pictures import least_share
from siglightning.commands.doctor.ring import BOUND
from siglightning.losses import self_test, sigmoid_loss, softmax_loss
from siglightning.models.token_record import TokenRecord
from siglightning.models.tokenizers import Tokenizer

WORDS = [f"a drawing of thing number {number}" for number in range(40)]


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A run without defects."""
    return case_of(tmp_path_factory.mktemp("small"))


@pytest.mark.parametrize(
    "name",
    ["sample", "pictures", "duplicates", "captions", "tokens", "negatives", "step 0", "groups", "length", "memory",
     "disk", "precision", "workers", "ring"],
)  # fmt: skip
def test_a_sound_run_has_no_findings(small, name):
    quiet(name, small)


def test_a_finding_without_a_remedy_is_refused():
    with pytest.raises(ValueError, match="Expected a remedy"):
        Finding("warning", "something is odd")


def test_a_check_that_fails_hides_neither_the_others_nor_what_it_had_found():
    def breaks(case):
        yield Finding("ok", "so far so good")
        raise RuntimeError("a disk is gone")

    def stumbles(case):
        raise RuntimeError("a disk is gone")
        yield

    checks = [
        NamedCheck("first", breaks),
        NamedCheck("second", stumbles),
        NamedCheck("third", lambda case: iter([Finding("ok", case)])),
    ]
    first, second, third = examine("all well", checks)
    assert [finding.text for finding in first.findings] == ["so far so good", "RuntimeError: a disk is gone"]
    assert first.level == "error"
    assert second.skipped == "stumbles over the same as first"
    assert [finding.text for finding in third.findings] == ["all well"]


# Data


def test_black_pictures(tmp_path):
    black = [png(torch.full((3, 32, 32), number % 2, dtype=torch.uint8)) for number in range(40)]
    case = case_of(tmp_path, data=table_data(tmp_path, black, WORDS))
    assert "no value of any picture is above 1" in one("sample", case, "error")


def test_pictures_of_one_colour(tmp_path):
    flat = [png(torch.full((3, 32, 32), 5 * number, dtype=torch.uint8)) for number in range(40)]
    case = case_of(tmp_path, data=table_data(tmp_path, flat, WORDS))
    assert "100% of 8 pictures show one colour alone" in one("sample", case, "warning")


def test_captions_that_say_nothing_or_all_the_same(tmp_path):
    pictures = [png(image) for image in drawings(40)]
    case = case_of(tmp_path, data=table_data(tmp_path, pictures, ["..."] * 40), model=with_network(canonicalize=True))
    text = one("sample", case, "warning")
    assert "8 of 8 captions give no token, such as '...'" in text
    assert "8 of 8 captions are '...'" in text


def test_pictures_that_cannot_be_read(tmp_path):
    pictures = [png(image) for image in drawings(40)]
    pictures[3] = pictures[3][:200]
    pictures[7] = b"<html>404 not found</html>"
    data = table_data(tmp_path, pictures, WORDS, val_pictures=[png(image) for image in drawings(9, 50)])
    text = one("pictures", case_of(tmp_path, data=data), "warning")
    assert "train: 40 of 40 pictures read, 2 cannot be (1 damaged, 1 no picture)" in text
    assert "007.png" in text
    pictures[8:12] = [b"nothing"] * 4  # of 200, as training counts, 1 % is 2
    data = table_data(tmp_path, pictures, WORDS, val_pictures=[png(image) for image in drawings(9, 50)])
    assert "training stops above 1.0%" in one("pictures", case_of(tmp_path, data=data), "error")


def test_planted_duplicates_are_found_and_others_are_not(tmp_path):
    train, others = drawings(40), drawings(5, 3000)
    planted = [
        png(train[0]), png(train[1], size=48), png(train[2], quality=50), png(train[3].flip(2)),
        png(train[4].flip(2), size=90, quality=80),
    ]  # fmt: skip
    val = [*planted, *(png(image) for image in others)]
    data = table_data(tmp_path, [png(image) for image in train], WORDS, val_pictures=val)
    case = case_of(tmp_path, data=data, report=tmp_path / "report.json")
    (finding,) = (each for each in found("duplicates", case) if each.level == "error")
    assert finding.values["counts"] == {"same pixels": 1, "nearly": 2, "mirrored": 2}
    assert [line.partition(" and ")[::2] for line in finding.lines] == [
        (f"val/00{row}.png", f"train/00{row}.png, {kind}")
        for row, kind in enumerate(("same pixels", "nearly", "nearly", "mirrored", "mirrored"))
    ]
    assert (tmp_path / "report-duplicates.png").stat().st_size > 10_000


def test_few_duplicates_are_a_warning(tmp_path):
    val = [png(drawings(1)[0]), *(png(image) for image in drawings(19, 3000))]
    data = table_data(tmp_path, [png(image) for image in drawings(40)], WORDS, val_pictures=val)
    assert "1 alike (1 same pixels), so about 5.0% of the set" in one(
        "duplicates", case_of(tmp_path, data=data), "warning"
    )


def test_a_sample_finds_a_leak_as_often_as_it_says():
    seen, of_training = 200, 0.1
    share = least_share(seen, of_training)
    draws = np.random.default_rng(0).random((4000, seen))
    caught = (draws < share * of_training).any(1).mean()
    assert caught == pytest.approx(0.95, abs=0.02)  # 4,000 draws: a standard error of .0034


def test_classes_without_training_pictures(tmp_path):
    for part, names in {"train": ("cat", "dog"), "val": ("cat", "cow", "dog")}.items():
        for name in names:
            (tmp_path / part / name).mkdir(parents=True)
            for number, image in enumerate(drawings(8)):
                (tmp_path / part / name / f"{number}.png").write_bytes(png(image))
    (tmp_path / "table.csv").write_text(
        "image,label\n"
        + "".join(f"train/{name}/{number}.png,{name}\n" for name in ("cat", "dog") for number in range(8))
    )
    columns = {"image": "image", "captions": [], "label": "label"}
    settings = {"class_names": ["cat", "cow", "dog"], "columns": columns, "global_batch_size": 8}
    data = {
        "class_path": "siglightning.data.TableDataModule",
        "init_args": {"train": str(tmp_path / "table.csv"), "image_root": str(tmp_path), **settings},
    }
    case = case_of(tmp_path, data=data)
    assert "1 of 3 classes have no training picture: cow" in one("classes", case, "warning")


def test_captions_that_are_cut(tmp_path):
    case = case_of(tmp_path, model=with_network(context_length=4))
    text = one("captions", case, "warning")
    assert "32 of 32 captions (100%) are longer than the context of 4 tokens" in text
    assert "context_length" in text


# Tokens


def test_another_tokenizer_than_that_of_the_checkpoint(tmp_path):
    case = case_of(tmp_path)
    record = {"text": TokenRecord.of(Tokenizer("clip", 24)).values()}
    case.origin = Origin(tmp_path / "a.ckpt", 5, frozenset({"image tower", "text side"}), record)
    quiet("tokens", case)
    record["text"] = TokenRecord.of(Tokenizer("clip", 32, canonicalize=True, pad_id=7)).values()
    text = one("tokens", case, "error")
    assert "context_length 24, there 32; pad_id 0, there 7; strips_punctuation False, there True" in text
    record["text"] = {**record["text"], "context_length": 24, "pad_id": 0, "strips_punctuation": False, "ids": "0"}
    assert "other ids for the same captions (clip, there clip)" in one("tokens", case, "error")
    case.origin = replace(case.origin, record={})
    assert "does not tell with which tokenizer" in one("tokens", case, "warning")


def test_a_tower_that_masks_another_padding(tmp_path):
    case = case_of(tmp_path)
    case.task.network.tokenizer = Tokenizer("clip", 24, pad_id=9)
    assert "the tower masks 0 as padding" in one("tokens", case, "error")


def test_captions_unlike_those_of_the_towers_family(tmp_path):
    text = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    text |= {"tokenizer_kwargs": {"clean": "canonicalize"}}
    vision = {"image_size": 32, "patch_size": 8, "width": 16, "layers": 1, "head_width": 8}
    path = tmp_path / "small_family.json"
    path.write_text(json.dumps({"embed_dim": 12, "custom_text": True, "vision_cfg": vision, "text_cfg": text}))
    settings = {"text_tower": {"name": f"open_clip:{path}"}, "context_length": None, "tokenizer": "clip"}
    case = case_of(tmp_path, model=with_network(**settings))
    assert "strips_punctuation False, there True" in one("tokens", case, "warning")
    quiet("tokens", case_of(tmp_path, model=with_network(**settings, canonicalize=True)))


# Objective


def test_accumulation_adds_no_negatives(tmp_path):
    arguments = ["--trainer.accumulate_grad_batches=4", "--model.allow_accumulation=true"]
    text = one("negatives", case_of(tmp_path, *arguments), "warning")
    assert "accumulated batches add none: 31, not 127" in text
    assert "`global_batch_size: 128`" in text


def test_few_negatives(tmp_path):
    assert "only 3 negatives an image" in one("negatives", case_of(tmp_path, "--data.global_batch_size=4"), "warning")


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"match": "none"}, "`match: none` takes them for negatives"),
        ({"loss": "softmax"}, "`loss: softmax` takes them"),
    ],
)
def test_repeated_captions_that_are_negatives(tmp_path, model, message):
    pictures = [png(image) for image in drawings(40)]
    data = table_data(tmp_path, pictures, ["a cat", "a dog"] * 20)
    quiet_case = case_of(tmp_path, data={**data, "init_args": {**data["init_args"], "global_batch_size": 32}})
    assert "all of them matched by `match_id`" in "".join(each.text for each in found("negatives", quiet_case))
    network = {"init_bias": None} if model.get("loss") == "softmax" else {}
    case = case_of(tmp_path, data=data, model=with_network(**network, task=model))
    assert message in one("negatives", case, "warning")


def test_captions_that_are_alike_once_they_are_cut(tmp_path):
    pictures = [png(image) for image in drawings(40)]
    words = [f"one two three four {number}" for number in range(40)]
    case = case_of(tmp_path, data=table_data(tmp_path, pictures, words), model=with_network(context_length=4))
    assert "8 of them have another `match_id`" in one("negatives", case, "warning")


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
    ("network", "message"),
    [
        ({"init_bias": 0.0}, "times that of the best b"),
        ({"init_log_scale": 10.0}, "t is far from what is known to train"),
    ],
)
def test_t_or_b_out_of_place(tmp_path, network, message):
    text = one("step 0", case_of(tmp_path, model=with_network(**network)), "warning")
    assert message in text
    assert "init_" in text.partition("->")[2]


def test_weights_that_do_not_know_the_pairs(tmp_path):
    case = case_of(tmp_path)
    case.origin = Origin(tmp_path / "a.ckpt", 5, frozenset({"image tower", "text side"}))
    assert "do not tell pairs from others here" in one("step 0", case, "error")
    _, texts, ids = case.embedded
    case.__dict__["embedded"] = texts, texts, ids  # as if every picture lay at its caption
    quiet("step 0", case)


def test_a_classifier_begins_at_equal_logits(tmp_path):
    model = {
        "class_path": "siglightning.tasks.FineTuneTask",
        "init_args": {
            "network": {
                "class_path": "siglightning.models.ImageEncoder",
                "init_args": {"image_tower": IMAGE, "image_size": 32},
            }
        },
    }
    data = {"class_path": "siglightning.data.PictogramDataModule", "init_args": {"global_batch_size": 32}}
    case = case_of(tmp_path, model=model, data=data)
    (finding,) = found("step 0", case)
    assert finding.level == "ok"
    assert finding.values["expected"] == pytest.approx(math.log(8), rel=1e-6)  # fp32
    with torch.no_grad():
        case.task.head.weight.mul_(1000)
    assert "begins near equal logits" in one("step 0", case, "warning")


# Settings and cost


def test_weight_decay_on_trained_weights(tmp_path):
    case = case_of(tmp_path)
    case.origin = Origin(pretrained=frozenset({"image_tower"}))
    text = one("groups", case, "warning")
    assert "weight decay of 0.01 on the image_tower" in text
    rules = ["--model.rules=[{pattern: network.image_tower, weight_decay_mult: 0}]"]
    case = case_of(tmp_path, *rules)
    case.origin = Origin(pretrained=frozenset({"image_tower"}))
    quiet("groups", case)


def test_a_group_that_is_trained_at_rate_zero(tmp_path):
    case = case_of(tmp_path, "--model.rules=[{pattern: text_tower, lr_mult: 0}]")
    assert "trained at a learning rate of 0: text_tower" in one("groups", case, "warning")


def test_a_run_that_never_validates_or_only_warms_up(tmp_path):
    case = case_of(tmp_path, "--trainer.val_check_interval=9")
    assert "no validation within 4 steps: one comes every 9" in one("length", case, "warning")
    case = case_of(tmp_path, "--model.schedule={warmup_steps: 4}")
    with pytest.raises(ValueError, match="The warm-up of 4 steps must be shorter"):  # `examine` makes it an error
        found("length", case)


def test_a_step_that_does_not_fit_the_memory(tmp_path):
    data = {**SMALL["data"], "init_args": {**SYNTHETIC, "num_samples": 2**20, "global_batch_size": 2**20}}
    case = case_of(tmp_path, data=data)
    case.run_dir = tmp_path
    text = one("memory", case, "error")
    assert "a step of 1,048,576 pairs at once takes" in text
    slices = found("memory", case)[0].values["micro_batch_size"]
    assert f"`micro_batch_size: {slices}`" in text
    case.task.network.micro_batch_size = slices
    quiet("memory", case)


def test_the_disk_forecast_is_the_size_of_a_checkpoint(tmp_path, small):
    case = case_of(tmp_path, "--checkpoint.keep_last=100000000")
    text = one("disk", case, "error")
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


def test_weights_of_sixteen_bits(tmp_path):
    text = one("precision", case_of(tmp_path, "--trainer.precision=bf16-true"), "warning")
    assert "lose updates below 1/256" in text


def test_more_loading_processes_than_cores(tmp_path):
    assert "4096 loading processes" in one("workers", case_of(tmp_path, "--data.num_workers=4096"), "warning")


def test_a_run_that_waits_for_its_data(tmp_path, small):
    assert all(finding.level == "ok" for finding in found("precision", small))
    data = {**SMALL["data"], "init_args": {**SYNTHETIC, "side": 500}}  # drawn large, then shrunk: 20 ms each
    text = one("loader", case_of(tmp_path, data=data), "warning")
    assert "the run waits for its data" in text
    assert "data.num_workers" in text


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


def test_the_ring_of_two_processes(tmp_path):
    case = case_of(tmp_path, "--trainer.devices=2", "--trainer.strategy=ring_ddp")
    (finding,) = found("ring", case)
    assert finding.level == "ok", finding.text
    assert finding.values["processes"] == 2
    assert "(2 x 16)" in found("negatives", case)[0].text


def with_network(task=None, **settings):
    """The recipe's model with other settings of its network, and of its task."""
    network = {**NETWORK, "init_args": {**NETWORK["init_args"], "text_tower": TEXT, **settings}}
    model = SMALL["model"]
    return {**model, "init_args": {**model["init_args"], "network": network, **(task or {})}}
