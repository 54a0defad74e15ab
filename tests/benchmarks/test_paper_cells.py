"""Cells are files: what is done stays done, what failed says so, what was killed is tried once more."""

import json
import sys
from dataclasses import replace

import pytest
from matplotlib.figure import Figure

from benchmarks.paper.__main__ import main
from benchmarks.paper.cells import ATTEMPTS, cell_file, commits, failures, finished, pending, run_cell, run_cells
from benchmarks.paper.pages import index_page, pages_of, require_publishable, study_page
from benchmarks.paper.statistics import Claim, differences
from benchmarks.paper.study import FIRST_SEED, Findings, Study, Table, Workspace, cell_name


def cells(workspace):
    return workspace.each_seed([{"loss": "sigmoid", "batch": 16}, {"loss": "softmax", "batch": 16}])


def run(settings, workspace):
    number = settings["seed"] - FIRST_SEED
    with (workspace.root / "ran").open("a") as file:
        file.write(f"{settings['loss']} {number}\n")
    if settings["loss"] == "softmax" and number == 1:
        raise ArithmeticError("out of range\nand more")
    return {"metric": number / 10 + (0.05 if settings["loss"] == "sigmoid" else 0.0)}


def findings(results):
    found = [results.where(loss=loss).by_seed("metric") for loss in ("sigmoid", "softmax")]
    claim = Claim("sigmoid over softmax", differences(*found))
    return Findings(str(Table(["a", "b"], [["x", "1"]])), [claim], Figure())


STUDY = Study("toy", "A toy", "It says so.", "So do we.", cells, run, findings)


@pytest.fixture
def workspace(tmp_path):
    return Workspace(tmp_path, "tiny", 3)


def ran(workspace):
    return (workspace.root / "ran").read_text().split("\n")[:-1]


def test_a_second_start_runs_nothing_twice(workspace):
    run_cells(STUDY, workspace, jobs=1)
    assert ran(workspace) == [f"{loss} {seed}" for seed in range(3) for loss in ("sigmoid", "softmax")]
    run_cells(STUDY, workspace, jobs=1)
    assert len(ran(workspace)) == 6
    assert sorted(finished(STUDY, workspace).where(loss="sigmoid").by_seed("metric")) == [
        FIRST_SEED + n for n in range(3)
    ]


def test_a_cell_that_is_missing_is_run_again(workspace):
    run_cells(STUDY, workspace, jobs=1)
    cell_file(STUDY, cells(workspace)[2], workspace).path.unlink()
    run_cells(STUDY, workspace, jobs=1)
    assert ran(workspace)[6:] == ["sigmoid 1"]


def test_a_crash_says_so_and_is_tried_again_only_when_asked(workspace):
    run_cells(STUDY, workspace, jobs=1)
    (error,) = failures(STUDY, workspace).values()
    assert error == "ArithmeticError: out of range"
    assert pending(STUDY, workspace, retry=False) == []
    assert pending(STUDY, workspace, retry=True) == [{"loss": "softmax", "batch": 16, "seed": FIRST_SEED + 1}]
    assert "Traceback" in cell_file(STUDY, cells(workspace)[3], workspace).read()["traceback"]


def test_a_cell_that_was_killed_is_begun_once_more_then_counts_as_crashed(workspace):
    settings = cells(workspace)[0]
    file = cell_file(STUDY, settings, workspace)
    for attempt in range(1, ATTEMPTS + 1):
        assert settings in pending(STUDY, workspace, retry=False)
        file.write(state="begun", settings=settings, attempts=attempt)
    assert settings not in pending(STUDY, workspace, retry=False)
    assert "ended without a word" in failures(STUDY, workspace)[file.path.stem]
    assert run_cell(STUDY, settings, workspace) == "done"
    assert file.read()["attempts"] == ATTEMPTS + 1


def test_changed_settings_are_another_cell():
    settings = {"loss": "sigmoid", "batch": 16, "seed": 0}
    names = {cell_name(settings, "full"), cell_name(settings, "tiny"), cell_name({**settings, "batch": 32}, "full")}
    assert len(names) == 3
    digests = [cell_name(order, "full")[-8:] for order in (settings, dict(reversed(settings.items())))]
    assert digests[0] == digests[1]


def test_the_page_has_claims_failures_and_circumstances(workspace):
    assert study_page(STUDY, workspace, "python -m x") is None
    run_cells(STUDY, workspace, jobs=1)
    line = study_page(STUDY, workspace, "python -m x")
    text = (pages_of(workspace) / "toy.md").read_text()
    assert "| 1 hold | 5 (1 missing) |" in line
    for part in ("paper. It says so.", "ArithmeticError: out of range", "5 of 6 cells", "`python -m x`; siglightning"):
        assert part in text
    assert "sigmoid over softmax: +5.00 points (95 % interval +5.00 to +5.00, 2 seeds)" in text
    assert all(commit in text for commit in commits(STUDY, workspace))
    rows = json.loads((pages_of(workspace) / "toy.json").read_text())
    assert [row["metric"] for row in rows] == [0.05, 0.0, 0.15, 0.25, 0.2]
    index = index_page({"toy": line, "other": None}, {"toy": STUDY, "other": STUDY}, {"figure 9": "no data"}, "command")
    assert "| not run | - | 0 | 0 |" in index
    assert "- figure 9: no data" in index


def test_results_of_several_settings_are_not_mixed(workspace):
    run_cells(STUDY, workspace, jobs=1)
    with pytest.raises(ValueError, match="one setting"):
        finished(STUDY, workspace).by_seed("metric")


def test_only_whole_runs_on_one_committed_tree_are_published(workspace):
    run_cells(STUDY, workspace, jobs=1)
    with pytest.raises(SystemExit, match=r"Cells missing: toy \(1\)"):  # the one that crashed
        require_publishable([STUDY], workspace)
    files = [cell_file(STUDY, settings, workspace) for settings in cells(workspace)]
    for trees in (["abc1234"] * 6, ["abc1234+"] * 6, ["abc1234"] * 5 + ["def5678"]):
        for file, commit in zip(files, trees, strict=True):
            file.write(**{**file.read(), "state": "done", "commit": commit})
        if set(trees) == {"abc1234"}:
            require_publishable([STUDY], workspace)
        else:
            with pytest.raises(SystemExit, match="one committed tree"):
                require_publishable([STUDY], workspace)


def test_an_interrupted_cell_is_as_good_as_new(workspace):
    def interrupted(settings, workspace):
        raise KeyboardInterrupt

    settings = cells(workspace)[0]
    for _ in range(ATTEMPTS + 1):
        with pytest.raises(KeyboardInterrupt):
            run_cell(replace(STUDY, run=interrupted), settings, workspace)
        assert settings in pending(STUDY, workspace, retry=False)


def test_the_command_lists_what_is_to_be_run(tmp_path, monkeypatch, capsys):
    def command(*arguments):
        given = ["paper", "--runs", str(tmp_path), "--scale", "tiny", "--seeds", "1", *arguments]
        monkeypatch.setattr(sys, "argv", given)
        main()

    command("--list", "--only", "table4")
    assert capsys.readouterr().out == "table4: 7 of 7 cells to be run\n"
    refusals = {
        "--write": "tiny runs are no results",
        "--write --scale=full": "three seeds or more, got 1",
        "--jobs=0": "at least 1, got 1 and 0",
    }
    for wrong, said in refusals.items():
        with pytest.raises(SystemExit, match="2"):
            command(*wrong.split())
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
