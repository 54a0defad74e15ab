"""What is made of measurements on a GPU: forecasts, turns, one file of several runs, pages and traces."""

import gzip
import json
import math

import pytest
import torch

from benchmarks.gpu.clock import Clock, number_of_turns, ratio, rotated, take_turns
from benchmarks.gpu.contestants import LIMIT, OURS
from benchmarks.gpu.forecast import GIB, Limits, Measured, grown, too_much
from benchmarks.gpu.loss_page import page
from benchmarks.gpu.results import add_cell, begin, skip
from benchmarks.gpu.trace import trimmed

CPU = torch.device("cpu")
KEY = ("dtype", "dim", "pairs")


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


def test_the_page_says_what_the_numbers_say():
    def row(name, seconds, gib, left_out=None):
        found = {"errors": {"images": 2e-3, "bias": 1e-6}, "repeats": 1, "first_s": 1.0, "left_out": left_out}
        return found | {"name": name, "seconds": seconds, "extra_bytes": None if gib is None else int(gib * GIB)}

    rows = [
        row(LIMIT, [0.02, 0.01, 0.01], 0.5),
        row(OURS, [0.03, 0.012, 0.02], 0.25),
        row("siglightning eager", [0.01, 0.01, 0.01], 1.0),
        row("open_clip SigLipLoss", [], None, "not run: needs 200 GiB"),
        row("siglip-kernel a", [0.06, 0.06, 0.05], 2.0),
        row("siglip-kernel b", [0.04, 0.06, 0.05], 1.5),
    ]
    cell = {"pairs": 65_536, "dim": 768, "dtype": "bfloat16", "run": 0, "turns": 3, "limit_tile": [4096, 65_536]}
    cell |= {"state": [None, "1980 MHz"], "rounding": {"images": 1.6e-3}, "rows": rows}
    run = {"kind": "cuda", "device": "Some GPU", "driver": "1", "cuda": "13", "commit": "0123456789", "dirty": True}
    run |= {"versions": {"torch": "2"}, "date": "today", "command": "python -m x"}
    text = page({"runs": [run], "cells": [cell], "skipped": [cell | {"pairs": 8, "left_out": "no time"}]}, ["a.png"])
    for line in (
        "On Some GPU.",
        "| siglightning triton | 20.000 | 12.000 to 30.000 | 1.50 | 989.6 | 0.25 | 2.0e-03 | - | - | 1.0e-06 | - |",
        "| rounding of the exact gradients alone |  |  |  |  |  | 1.6e-03 | - | - | - | - |",
        "3 turns. The limit's tile: 4,096 x 65,536. Clocks, temperature and power around the turns: 1980 MHz.",
        "| 768 | 65,536 | 20.000 | siglip-kernel b | 50.000 | 2.50 |",
        "| 65,536 | 10.000 | 1.50 | 1.00 | 5.00 | 5.00 |",  # limit, triton, eager, a and b
        "| 65,536 | 0.50 | 0.25 | 1.00 | 2.00 | 1.50 |",
        "- 65,536 x 768, open_clip SigLipLoss: not run: needs 200 GiB",
        "- 8 x 768, everything: no time",
        "1. `python -m x`; Some GPU, driver 1, CUDA 13; torch 2; commit 0123456 with changes; today",
    ):
        assert line in text.splitlines(), line
