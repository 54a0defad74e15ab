"""The measurement of losses on a GPU, tried on a CPU: its arithmetic, its forecasts, and what it refuses to write."""

import gzip
import json
import math
from importlib.util import find_spec

import pytest
import torch

from benchmarks.gpu import pairs, place, products, sweep
from benchmarks.gpu.cell import History, Options, Work, expected_seconds, measure_cell
from benchmarks.gpu.clock import Clock, number_of_turns, ratio, rotated, take_turns
from benchmarks.gpu.contestants import LIMIT, Contestant, chosen, contestants, dense_reference
from benchmarks.gpu.forecast import GIB, Limits, Measured, grown, too_much
from benchmarks.gpu.graph import check_graph
from benchmarks.gpu.pairs import errors, make_inputs, reference, rounding
from benchmarks.gpu.products import Tile, best_tile, three_products, tiles_for
from benchmarks.gpu.results import add_cell, begin, skip
from benchmarks.gpu.trace import trimmed
from benchmarks.gpu_loss import main

CPU = torch.device("cpu")
EAGER = ["siglightning eager", "dense reference, eager", "open_clip SigLipLoss"]
SHORT = ["--tiny", "--cell-seconds", "0.1"]
KEY = ("dtype", "dim", "pairs")
needs_kernel = pytest.mark.skipif(find_spec("triton") is None, reason="there is no Triton")


def rows_of(cell):
    return {row["name"]: row for row in cell["rows"]}


def test_a_tiny_run_measures_everything_and_makes_its_page(tmp_path, capsys):
    main([*SHORT, "--out", str(tmp_path), "--dtype", "float32", "--contestants", "eager", "open_clip", "hopper"])
    results = json.loads((tmp_path / "gpu_loss.json").read_text())
    assert [(cell["pairs"], cell["dim"]) for cell in results["cells"]] == [(48, 16), (64, 16)]
    for cell in results["cells"]:
        rows = rows_of(cell)
        for name in EAGER:
            assert len(rows[name]["seconds"]) == cell["turns"] >= 3
            assert max(rows[name]["errors"].values()) < 3e-6  # fp32 of 64 pairs
            assert set(rows[name]["errors"]) >= {"images", "texts", "value", "log_scale", "bias"}
        assert len(rows[LIMIT]["seconds"]) == cell["turns"]
        assert rows["siglip-kernel hopper"]["left_out"] is not None
    (run,) = results["runs"]
    assert run["kind"] == run["device"] == "cpu"
    assert "--contestants eager open_clip hopper" in run["command"]
    assert results["graphs"] == [
        {"name": "siglightning eager", "pairs": 64, "dim": 16, "captured": False, "reason": "needs a GPU"}
    ]
    page = (tmp_path / "gpu_loss.md").read_text()
    assert "nothing here tells of a GPU" in page
    assert "- 64 x 16, siglip-kernel hopper: " in page
    assert page.count("| siglightning eager |") == 1  # the size in full
    assert (tmp_path / "gpu_loss_time.png").stat().st_size > 5000
    assert not (tmp_path / "gpu_loss_memory.png").exists()  # nothing is known of memory on a CPU


def test_a_second_run_adds_its_sizes(tmp_path):
    for size in ("24", "32"):
        main([*SHORT, "--out", str(tmp_path), "--contestants", "dense reference, eager", "--pairs", size])
    results = json.loads((tmp_path / "gpu_loss.json").read_text())
    assert [(cell["pairs"], cell["run"]) for cell in results["cells"]] == [(24, 0), (32, 1)]
    assert len(results["runs"]) == 2


@pytest.mark.parametrize("inside", [None, "here", "below"])
def test_figures_of_a_cpu_never_lie_among_results(tmp_path, monkeypatch, capsys, inside):
    monkeypatch.setattr(place, "RESULTS", tmp_path)
    out = {None: [], "here": ["--out", str(tmp_path)], "below": ["--out", str(tmp_path / "below")]}[inside]
    with pytest.raises(SystemExit) as ended:
        main(["--tiny", *out])
    assert ended.value.code == 2
    assert "taken for a GPU's" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_wrong_arguments_end_with_one_line(tmp_path, capsys):
    for wrong, words in (
        (["--contestants", "nobody"], "There are: siglightning triton; siglightning eager; dense reference, compiled;"),
        (["--budget", "0", "--pairs", "16", "32"], "--budget"),
        (["--device", "cuda"], "--tiny"),
    ):
        if wrong[0] == "--device" and torch.cuda.is_available():
            continue
        tiny = [] if wrong[0] == "--device" else ["--tiny"]
        with pytest.raises(SystemExit) as ended:
            main([*tiny, "--out", str(tmp_path), *wrong])
        error = capsys.readouterr().err
        assert ended.value.code == 2
        assert words in error
        assert error.count("\n") == 1


@pytest.mark.parametrize("tile", [(5, 13), (4, 3), (13, 13), (13, 4), (16_384, 16_384)])
def test_the_limit_is_the_three_products_whatever_the_tile(tile):
    x, y = torch.randn(2, 13, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    of_images, of_texts = three_products(x, y, Tile(*(min(side, 13) for side in tile)))
    torch.testing.assert_close(of_images, x @ y.T @ y)
    torch.testing.assert_close(of_texts, (x @ y.T).T @ x)


def test_tiles_of_the_limit_fit_in_half_the_memory(monkeypatch):
    assert tiles_for(65_536, 2, None)[-1] == Tile(65_536, 65_536)
    fitting = tiles_for(1_048_576, 2, 80 * GIB)
    assert fitting[-1] == Tile(16_384, 1_048_576)  # 32 GiB
    assert Tile(32_768, 1_048_576) not in fitting
    assert tiles_for(48, 2, None) == [Tile(48, 48)]
    monkeypatch.setattr(products, "SIDES", (4, 8))
    inputs = [make_inputs(16, 4, torch.float32, CPU)]
    assert best_tile(Clock(CPU), inputs, tiles_for(16, 4, None)) in tiles_for(16, 4, None)


def test_exact_gradients_are_those_of_the_dense_loss(monkeypatch):
    monkeypatch.setattr(pairs, "BLOCK", 64)  # three steps over the other side
    monkeypatch.setattr(pairs, "DENSE_ENTRIES", 150 * 40)  # four over the matrix
    inputs = make_inputs(150, 8, torch.float64, CPU)
    exact = reference(inputs, whole=True)
    loss = dense_float64(*inputs.tensors)
    loss.backward()
    found = errors(inputs, loss, exact)
    assert set(found) == {"images", "images_max", "texts", "texts_max", "value", "log_scale", "bias"}
    assert max(found[key] for key in ("images", "images_max", "texts", "texts_max", "value")) < 1e-12
    assert max(found["log_scale"], found["bias"]) < 6e-8  # their gradients are kept in fp32
    assert 40 < len(exact.rows) <= 64
    assert {0, 149} <= set(exact.rows.tolist())


def test_errors_are_seen():
    inputs = make_inputs(60, 8, torch.float64, CPU)
    loss = dense_float64(*inputs.tensors)
    loss.backward()
    exact = reference(inputs, whole=True)
    inputs.images.grad *= 1.01
    inputs.log_scale.grad *= 0.9
    inputs.texts.grad[0] = 0
    found = errors(inputs, 2 * loss, exact)
    assert found["images"] == pytest.approx(0.01)
    assert found["images_max"] == pytest.approx(0.01)
    assert found["log_scale"] == pytest.approx(0.1)
    assert found["value"] == pytest.approx(1.0)
    assert 0.01 < found["texts"] < 0.5
    assert found["bias"] < 6e-8
    assert 5e-4 < rounding(exact, torch.bfloat16)["images"] < 4e-3  # half a step of 8 bits at most


def dense_float64(images, texts, log_scale, bias):
    logits = images @ texts.T * log_scale.double().exp() + bias.double()
    signs = 2 * torch.eye(len(images), dtype=torch.float64) - 1
    return -torch.nn.functional.logsigmoid(signs * logits).sum() / len(images)


def test_the_dense_reference_is_the_loss():
    inputs = make_inputs(20, 8, torch.float32, CPU)
    torch.testing.assert_close(
        dense_reference(*inputs.tensors).double(), dense_float64(*(t.double() for t in inputs.tensors))
    )


def test_forecasts_follow_what_was_measured():
    assert grown({100: 3.0}, 200) == pytest.approx(12.0)  # from one, all of it grows with the square
    assert grown({10: 2 * 10 + 3 * 100, 20: 2 * 20 + 3 * 400}, 50) == pytest.approx(2 * 50 + 3 * 2500)
    assert grown({10: 50.0, 20: 100.0}, 80) == pytest.approx(400.0)  # no square in it
    assert grown({10: 50.0, 20: 60.0}, 40) == pytest.approx(120.0)  # never less than proportional
    with pytest.raises(ValueError, match="Measure a smaller batch"):
        grown({64: 1.0}, 64)


def test_what_would_not_fit_or_not_end_is_told():
    known = {8192: Measured(0.01, GIB)}
    assert too_much({}, 65_536, 0, Limits(1.0, GIB)) is None
    assert too_much(known, 65_536, 0, Limits(1.0, 80 * GIB)) is None
    memory = too_much(known, 131_072, GIB, Limits(10.0, 80 * GIB))
    assert memory == "not run: needs 257 GiB where 80 GiB are free (forecast from 8,192 pairs)"
    time = too_much(known, 131_072, GIB, Limits(1.0, None))
    assert time == "not run: needs 3 s, more than 1 s (forecast from 8,192 pairs)"


def test_a_contestant_that_fails_is_told_of_and_the_others_are_measured():
    def broken(*_):
        raise RuntimeError("no kernel\nand more")

    listed = [Contestant("broken", broken), Contestant("slow", dense_reference), Contestant("dense", dense_reference)]
    history: History = {(8, "slow"): {16: Measured(3.0, None)}}
    cell = measure_cell(Clock(CPU), Work(32, 8, torch.float32), listed, history, Options(cell_s=0.01, max_s=5.0))
    rows = rows_of(cell)
    assert rows["broken"]["left_out"] == "failed: RuntimeError: no kernel"
    assert rows["slow"]["left_out"].startswith("not run: needs 12 s")
    assert rows["dense"]["left_out"] is None
    assert len(rows["dense"]["seconds"]) == len(rows[LIMIT]["seconds"]) == cell["turns"]
    assert 32 in history[8, "dense"]
    at_64 = 5 * 4 * (history[8, "dense"][32].seconds + history[8, LIMIT][32].seconds)  # two to begin with, three turns
    for max_s, expected in ((100.0, at_64 + 5 * 16 * 3.0), (5.0, at_64)):  # without the slow one
        found = expected_seconds(Work(64, 8, torch.float32), listed, history, Options(max_s=max_s))
        assert found == pytest.approx(expected)


def test_each_is_first_and_last_as_often_as_the_others():
    names = ["a", "b", "c"]
    orders = [rotated(names, turn) for turn in range(6)]
    assert all(sorted(order) == names for order in orders)
    assert all(orders[turn + 1] == orders[turn][::-1] for turn in (0, 2, 4))  # nobody always follows the same one
    assert (
        sorted(order[0] for order in orders) == sorted(order[-1] for order in orders) == ["a", "a", "b", "b", "c", "c"]
    )
    assert ratio([2.0, 30.0, 4.0], [1.0, 10.0, 4.0]) == 2.0
    assert number_of_turns({"a": 0.5, "b": 0.5}, 5.0) == 5
    assert number_of_turns({"a": 50.0}, 5.0) == 3
    assert number_of_turns({"a": 1e-3}, 500.0) == 30


def test_who_fails_in_a_turn_has_no_seconds_and_the_others_go_on(capsys):
    calls = []

    def fails_later():
        calls.append(1)
        if len(calls) > 1:
            raise torch.OutOfMemoryError("in pieces")

    runs = {"fails": fails_later, "b": lambda: None, "c": lambda: None}
    found = take_turns(Clock(CPU), runs, dict.fromkeys(runs, 1.0), 4)
    assert {name: len(seconds) for name, seconds in found.items()} == {"fails": 0, "b": 4, "c": 4}
    assert "fails failed in turn 2: OutOfMemoryError: in pieces" in capsys.readouterr().err


def test_runs_of_other_machines_do_not_mix():
    run = {"kind": "cuda", "device": "A", "driver": "1", "versions": {"torch": "2"}}
    results = begin({"runs": [], "cells": []}, run)
    assert len(begin(results, dict(run))["runs"]) == 2
    for key, value in (("device", "B"), ("driver", "2"), ("versions", {"torch": "3"})):
        with pytest.raises(ValueError, match=f"Expected the {key} of the results so far"):
            begin(results, run | {key: value})


def test_a_size_is_replaced_and_what_was_skipped_is_forgotten_once_measured():
    results = {"runs": [{}], "cells": []}
    cell = {"dtype": "bfloat16", "dim": 768, "pairs": 4096}
    skip(results, cell, "no time", KEY)
    skip(results, cell, "no time again", KEY)
    assert results["skipped"] == [cell | {"left_out": "no time"}]
    for turns in (3, 5):
        add_cell(results, cell | {"turns": turns}, KEY)
    assert results["cells"] == [{"run": 0, **cell, "turns": 5}]
    assert results["skipped"] == []
    skip(results, cell, "no time", KEY)
    assert results["skipped"] == []


def test_a_trace_keeps_its_kernels_when_it_is_cut():
    kernels = [{"ph": "X", "cat": "kernel", "ts": n, "name": f"kernel {n}"} for n in range(50)]
    others = [{"ph": "X", "cat": "cpu_op", "ts": n, "name": f"{math.sin(n)}"} for n in range(4000)]
    names = [{"ph": "M", "name": "process_name"}]
    packed = trimmed({"traceEvents": [*others, *kernels, *names], "schemaVersion": 1}, 10_000)
    assert len(packed) <= 10_000
    kept = json.loads(gzip.decompress(packed))
    assert kept["schemaVersion"] == 1
    assert kept["traceEvents"][:51] == [*names, *kernels]
    assert 51 < len(kept["traceEvents"]) < 1000
    with pytest.raises(ValueError, match="at most 10 bytes"):
        trimmed({"traceEvents": []}, 10)


def test_profiles_are_written(tmp_path):
    main([*SHORT, "--out", str(tmp_path), "--profile", "--pairs", "32", "--contestants", "siglightning eager"])
    table = (tmp_path / "profile_siglightning_eager_32x16.txt").read_text()
    assert "one forward and backward pass" in table
    assert "aten::addmm_" in table
    trace = json.loads(gzip.decompress((tmp_path / "profile_siglightning_eager_32x16.json.gz").read_bytes()))
    assert sum(event.get("name") == "one forward and backward pass" for event in trace["traceEvents"]) >= 3


@needs_kernel
def test_a_sweep_runs_every_setting_and_leaves_the_kernel_as_it_was(tmp_path, monkeypatch):
    from siglightning.losses import triton_sigmoid

    monkeypatch.setattr(sweep, "SIDES", (16, 64))
    monkeypatch.setattr(sweep, "BLOCKS", ((16, 32), (32, 16)))
    for name, values in (("DEPTHS", (16,)), ("WARPS", (4,)), ("STAGES", (2,)), ("GROUPS", (3,)), ("SECONDS", 0.01)):
        monkeypatch.setattr(sweep, name, values)
    own, used = triton_sigmoid.default_blocks, []
    real = triton_sigmoid.FusedTiles
    monkeypatch.setattr(triton_sigmoid, "FusedTiles", lambda *a: used.append((a[1], a[2])) or real(*a))
    main([*SHORT, "--out", str(tmp_path), "--sweep", "--pairs", "40", "--dtype", "float32"])
    (cell,) = json.loads((tmp_path / "gpu_loss_sweep.json").read_text())["cells"]
    assert {(row["side"], str(row["kernel"])) for row in cell["rows"]} == {
        *((None, "None"), (16, "None")),
        *((None, str({"rows": rows, "columns": 48 - rows, "depth": 16, "warps": 4, "stages": 2})) for rows in (16, 32)),
        (None, str({"rows": 16, "columns": 32, "depth": 16, "group": 3})),
    }
    for row in cell["rows"]:
        assert "failed" not in row
        assert row["errors"]["images"] < 3e-6
        assert len(row["seconds"]) >= 3
    assert {(side, blocks.rows, blocks.group) for side, blocks in used} == {
        *((256, 128, 8), (16, 128, 8), (256, 16, 8), (256, 32, 8), (256, 16, 3))
    }
    assert triton_sigmoid.default_blocks is own


@needs_kernel
def test_the_kernel_takes_part(tmp_path):
    main([*SHORT, "--out", str(tmp_path), "--pairs", "40", "--dtype", "float32", "--contestants", "triton"])
    (cell,) = json.loads((tmp_path / "gpu_loss.json").read_text())["cells"]
    row = rows_of(cell)["siglightning triton"]
    assert row["left_out"] is None
    assert max(row["errors"].values()) < 3e-6


def test_names_choose_contestants():
    assert [contestant.name for contestant in chosen(["open_clip"])] == ["open_clip SigLipLoss"]
    assert len(chosen([])) < len(contestants())
    assert len({contestant.name for contestant in contestants()}) == len(contestants())


@pytest.mark.skipif(torch.cuda.is_available(), reason="what is said where there is no GPU")
def test_graphs_need_a_gpu():
    (ours,) = chosen(["siglightning eager"])
    assert check_graph(Clock(CPU), ours, 16, 8, torch.float32)["reason"] == "needs a GPU"


@pytest.mark.slow  # compiles twice
def test_the_compiled_reference_is_measured_at_each_size(tmp_path):
    main([*SHORT, "--out", str(tmp_path), "--dtype", "float32", "--contestants", "compiled"])
    for cell in json.loads((tmp_path / "gpu_loss.json").read_text())["cells"]:
        row = rows_of(cell)["dense reference, compiled"]
        assert row["left_out"] is None
        assert row["first_s"] > 10 * min(row["seconds"])  # compilation is in the first run and in no other
        assert max(row["errors"].values()) < 3e-6
