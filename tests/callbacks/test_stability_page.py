"""The page of loss and norms, one run or several."""

import warnings

import numpy as np
from PIL import Image

from siglightning.callbacks.curves import BLUE, ORANGE, draw_collapse
from siglightning.callbacks.stability_page import draw_runs, draw_stability, spike_steps
from siglightning.runtime.metrics_file import Series


def run(seed, spikes=(), norms=("grad", "update", "param")):
    steps = np.arange(0, 400, 4)
    values = np.exp(np.random.default_rng(seed).normal(size=(4, 100)))
    names = ["train/loss", *(f"train/{name}_norm" for name in norms)]
    counts = (steps[:, None] >= np.array(spikes or [10**6])).sum(1)
    series = {name: Series(steps, row) for name, row in zip(names, values, strict=False)}
    return series | {"train/spikes": Series(steps, counts.astype(float))}


def colours(path):
    return {tuple(pixel) for pixel in np.asarray(Image.open(path).convert("RGB")).reshape(-1, 3)}


def rgb(colour):
    return tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5))


def test_spikes_are_where_the_count_grew():
    assert spike_steps(run(0, spikes=(40, 42, 203))).tolist() == [40, 44, 204]
    assert spike_steps(run(0)).tolist() == []
    assert spike_steps({}).tolist() == []


def test_a_page_for_one_run_and_for_several(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a layout that has no room for the panels is told as a warning
        assert draw_stability(run(0, spikes=(40,)), tmp_path / "one.png")
        assert draw_runs({"b2 .999": run(0), "b2 .95": run(1, spikes=(40,))}, tmp_path / "two.png")
        assert draw_runs({"short": run(0, norms=())}, tmp_path / "loss.png")
    assert rgb(BLUE) in colours(tmp_path / "one.png")
    assert rgb(ORANGE) not in colours(tmp_path / "one.png")
    assert {rgb(BLUE), rgb(ORANGE)} <= colours(tmp_path / "two.png")
    heights = [Image.open(tmp_path / name).height for name in ("one.png", "two.png", "loss.png")]
    assert heights == [1350, 1350, 405]


def test_runs_without_such_metrics_get_no_page(tmp_path):
    assert not draw_stability({"train/loss": run(0)["train/loss"]}, tmp_path / "none.png")
    assert not draw_runs({"a": {}, "b": {}}, tmp_path / "none.png")
    assert not draw_collapse(run(0), tmp_path / "none.png")
    assert not (tmp_path / "none.png").exists()
    assert draw_collapse({"train/text_effective_rank": run(0)["train/loss"]}, tmp_path / "rank.png")
