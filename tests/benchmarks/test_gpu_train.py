"""The measurement of training on a GPU, tried on a CPU: both loops train the same, and a turn is what it says."""

import gzip
import json
import logging

import pytest
import torch

from benchmarks.gpu import place
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.train_cell import OURS, input_dtype, measure_cell
from benchmarks.gpu.train_open_clip import OpenClipTraining, parameter_groups
from benchmarks.gpu.train_ours import OurTraining, flops_per_image, state
from benchmarks.gpu.train_page import images_per_s, page, peak_flops
from benchmarks.gpu.train_setup import (
    OPTIMIZER,
    Window,
    Work,
    make_batches,
    open_clip_model,
    shape_of,
)
from benchmarks.gpu_train import TINY_MODEL, main

CPU = torch.device("cpu")
TINY = Work(str(TINY_MODEL), 4, "32-true", False, CPU)
AMP = "open_clip amp_bf16"


def test_a_tiny_run_measures_both_loops_and_makes_its_page(tmp_path, capsys):
    short = ["--turns", "2", "--steps", "2", "--warm-up", "1"]
    level = logging.getLogger("lightning.pytorch").level
    main(["--tiny", "--out", str(tmp_path), *short])
    assert logging.getLogger("lightning.pytorch").level == level, "whoever trains next is heard"
    results = json.loads((tmp_path / "gpu_train.json").read_text())
    (cell,) = results["cells"]
    assert (cell["model"], cell["batch"], cell["side"], cell["context"]) == ("tiny_siglip", 4, 16, 6)
    assert [row["name"] for row in cell["rows"]] == [OURS, AMP, "open_clip pure_bf16"]
    for row in cell["rows"]:
        assert row["left_out"] is None
        assert len(row["seconds"]) == 2
        assert min(row["seconds"]) > 0
    assert results["runs"][0]["kind"] == "cpu"
    text = (tmp_path / "gpu_train.md").read_text()
    assert "nothing here tells of a GPU" in text
    assert text.count("| open_clip amp_bf16 | ") == 1
    assert (tmp_path / "gpu_train.png").stat().st_size > 5000


def test_figures_of_a_cpu_never_lie_among_results(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(place, "RESULTS", tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["--tiny"])
    assert ended.value.code == 2
    assert "taken for a GPU's" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_both_loops_train_the_same_weights(tmp_path, monkeypatch):
    """From one start, over the same batches, in fp32: whatever one loop did not do would be seen in its weights.

    Without decay: ours leaves positions out of it, theirs does not.
    """
    monkeypatch.setitem(OPTIMIZER, "weight_decay", 0.0)
    model = open_clip_model(TINY.model)
    start = {key: value.clone() for key, value in model.state_dict().items()}
    shape = shape_of(model)
    batches = make_batches(shape, TINY.batch, {torch.float32})
    ours, theirs = OurTraining(TINY, shape, tmp_path, model), OpenClipTraining(TINY, model, "fp32")
    for _ in range(2):  # the second turn goes on where the first one ended
        for training in (ours, theirs):
            training.turn(batches, Window(Clock(CPU), 1, 2))
    trained = state(ours.network)
    assert trained.keys() == model.state_dict().keys()
    for name, value in model.state_dict().items():
        if name.endswith("in_proj_bias"):  # a key's bias has a gradient of rounding alone, which AdamW magnifies
            value, trained[name] = (torch.cat([bias[:16], bias[32:]]) for bias in (value, trained[name]))
            start[name] = torch.cat([start[name][:16], start[name][32:]])
        torch.testing.assert_close(trained[name], value, rtol=0, atol=2e-5, msg=lambda text, n=name: f"{n}: {text}")
    moved = [float((value - start[name]).abs().max()) for name, value in trained.items()]
    assert min(moved) >= 0
    assert sum(way > 2 * OPTIMIZER["lr"] for way in moved) > 30  # of 45 tensors, in six steps


def test_a_window_counts_from_the_end_of_the_last_step_that_warms_up():
    told = []
    clock = Clock(CPU)
    clock.wait = lambda: told.append("wait")
    window = Window(clock, 2, 3)
    for step in range(1, 6):
        assert window.seconds is None
        window.finished(step)
        told.append(step)
    assert told == [1, "wait", 2, 3, 4, "wait", 5]
    assert window.total == 5
    assert window.seconds is not None


def test_each_loop_takes_as_many_steps_as_the_window(tmp_path):
    model = open_clip_model(TINY.model)
    shape = shape_of(model)
    batches = make_batches(shape, TINY.batch, {torch.float32})
    for training in (OurTraining(TINY, shape, tmp_path, model), OpenClipTraining(TINY, model, "fp32")):
        finished = []
        window = Window(Clock(CPU), 1, 2)
        window.finished = finished.append
        training.turn(batches, window)
        assert finished == [1, 2, 3]


def test_theirs_gets_pictures_as_their_loaders_give_them():
    shape = shape_of(open_clip_model(TINY.model))
    batches = make_batches(shape, 4, {input_dtype("amp_bf16"), input_dtype("pure_bf16")})
    assert set(batches.normalised) == {torch.float32, torch.bfloat16}
    image, normalised = batches.images[1], batches.normalised[torch.float32][1]
    assert image.dtype == torch.uint8
    channel = (image[:, 2].float() / 255 - shape.mean[2]) / shape.std[2]
    torch.testing.assert_close(normalised[:, 2], channel)
    assert int(max(text.max() for text in batches.texts)) < shape.vocabulary


def test_what_decays_is_what_its_main_says():
    model = open_clip_model(TINY.model)
    kept, decaying = (sum(p.numel() for p in group["params"]) for group in parameter_groups(model))
    names = {name for name, parameter in model.named_parameters() if parameter.ndim < 2}
    assert {"logit_scale", "logit_bias", "visual.ln_post.weight"} <= names
    assert kept >= sum(dict(model.named_parameters())[name].numel() for name in names)
    assert kept + decaying == sum(parameter.numel() for parameter in model.parameters())


def test_a_training_that_fails_is_told_of_and_the_others_are_measured():
    wrong = TINY._replace(precision="nonsense")
    cell = measure_cell(Clock(CPU), wrong, [OURS, "open_clip fp32"], turns=1, warm_up=1, steps=1)
    ours, theirs = cell["rows"]
    assert ours["left_out"].startswith("failed: ValueError")
    assert ours["seconds"] == []
    assert len(theirs["seconds"]) == 1
    text = page({"runs": [RUN], "cells": [cell]})
    assert "| siglightning | failed: ValueError" in text


RUN = {
    "kind": "cuda",
    "device": "NVIDIA H100 80GB HBM3",
    "driver": "0",
    "cuda": "0",
    "commit": None,
    "versions": {},
    "date": "never",
    "command": "none",
}


def test_images_and_mfu_follow_from_the_seconds():
    cell = {"batch": 256, "steps": 20, "flops_per_image": 150e9, "state": [None, None]}
    cell |= {"warm_up": 4, "model": "M", "side": 224, "context": 64, "precision": "bf16-mixed", "compiled": True}
    row = {"left_out": None, "first_s": 1.0, "peak_bytes": 2**30}
    ours, theirs = row | {"name": OURS, "seconds": [2.0, 2.0, 4.0]}, row | {"name": AMP, "seconds": [4.0, 3.0, 6.0]}
    text = page({"runs": [RUN], "cells": [cell | {"rows": [ours, theirs]}]})
    assert images_per_s(cell, ours) == [2560.0, 2560.0, 1280.0]
    assert "| siglightning / this |" in text
    assert "| siglightning | 2,560.0 | 1,280.0 to 2,560.0 | 1.00 | 384.0 | 38.8 % | 1.0 |" in text  # of 989 TFLOP/s
    assert "| open_clip amp_bf16 | 1,280.0 | 853.3 to 1,706.7 | 1.50 | 192.0 | 19.4 % | 1.0 |" in text


def test_peaks_are_of_the_device_that_ran():
    assert peak_flops(RUN) == 989.5e12
    assert peak_flops(RUN | {"device": "something else"}) is None
    assert peak_flops(RUN | {"kind": "cpu"}) is None


def test_flops_are_those_of_the_formula():
    """Two layers of width 16; pictures of four patches and a class token, six words."""
    model = open_clip_model(TINY.model)
    shape = shape_of(model)
    width, tokens, words, batch = 16, 5, 6, 4

    def blocks(length):
        return 2 * (24 * length * width**2 + 4 * length**2 * width)

    patches = 2 * 4 * (3 * 8 * 8) * width  # no gradient by the picture: once forward, once backward
    towers = 2 * patches + 3 * (blocks(tokens) + blocks(words) + 2 * 2 * width * 16)
    counted = flops_per_image(TINY, shape, make_batches(shape, batch, set()))
    assert counted == pytest.approx(towers + 6 * batch * 16, rel=1e-3)


@pytest.mark.slow  # compiles both
def test_turns_after_the_first_compile_nothing(tmp_path):
    from torch._dynamo.utils import counters

    work = TINY._replace(compiled=True)
    model = open_clip_model(work.model)
    shape = shape_of(model)
    batches, before = make_batches(shape, work.batch, {torch.float32}), counters["stats"]["unique_graphs"]
    trainings, graphs = (OurTraining(work, shape, tmp_path, model), OpenClipTraining(work, model, "fp32")), []
    for _ in range(3):
        for training in trainings:
            training.turn(batches, Window(Clock(CPU), 1, 2))
        graphs.append(counters["stats"]["unique_graphs"] - before)
    assert graphs == [3, 3, 3]  # our two towers, their model


def test_profiles_are_written(tmp_path):
    main(["--tiny", "--out", str(tmp_path), "--profile", "--names", AMP])
    stem = "profile_train_open_clip_amp_bf16_4"
    assert "aten::addmm" in (tmp_path / f"{stem}.txt").read_text()
    assert json.loads(gzip.decompress((tmp_path / f"{stem}.json.gz").read_bytes()))["traceEvents"]
    assert not (tmp_path / "gpu_train.json").exists()
