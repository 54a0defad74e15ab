"""The measurement of losses on a GPU, tried on a CPU: its arithmetic, its forecasts, and what it refuses to write."""

import gzip
import json
from importlib.util import find_spec

import pytest
import torch

from benchmarks.gpu import pairs, place, products, sweep
from benchmarks.gpu.cell import History, Options, Work, expected_seconds, measure_cell
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.contestants import LIMIT, Contestant, chosen, contestants, dense_reference
from benchmarks.gpu.forecast import GIB, Measured
from benchmarks.gpu.graph import check_graph
from benchmarks.gpu.pairs import errors, make_inputs, reference, rounding
from benchmarks.gpu.products import Tile, best_tile, three_products, tiles_for
from benchmarks.gpu_loss import main

CPU = torch.device("cpu")
EAGER = ["siglightning eager", "dense reference, eager", "open_clip SigLipLoss"]
SHORT = ["--tiny", "--cell-seconds", "0.1"]
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
    monkeypatch.setattr(sweep, "PAIRED", {"rows": 16, "columns": 16, "depth": 16, "registers": 128})
    own, used = triton_sigmoid.default_blocks, []
    real = triton_sigmoid.FusedTiles
    monkeypatch.setattr(triton_sigmoid, "FusedTiles", lambda *a: used.append((a[1], a[2])) or real(*a))
    main([*SHORT, "--out", str(tmp_path), "--sweep", "--pairs", "40", "--dtype", "float32"])
    (cell,) = json.loads((tmp_path / "gpu_loss_sweep.json").read_text())["cells"]
    assert {(row["side"], str(row["kernel"])) for row in cell["rows"]} == {
        *((None, "None"), (16, "None")),
        *((None, str({"rows": rows, "columns": 48 - rows, "depth": 16, "warps": 4, "stages": 2})) for rows in (16, 32)),
        *((None, str(kernel)) for kernel in (sweep.PAIRED, {"rows": 16, "columns": 32, "depth": 16, "group": 3})),
    }
    for row in cell["rows"]:
        assert "failed" not in row
        assert row["errors"]["images"] < 3e-6
        assert len(row["seconds"]) >= 3
    assert {(side, blocks.rows, blocks.group) for side, blocks in used} == {
        *((256, 32, 8), (16, 32, 8), (256, 16, 8), (256, 16, 3))
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
