"""``metrics.csv``: one row a step, late columns, and the file of an undisturbed run after a resume."""

import csv
import resource
from contextlib import contextmanager

import pytest
import torch

from siglightning.runtime.metrics_csv import MetricsCsvLogger


def log(logger, first, last):
    """Train every step, validate after every third; a learning rate appears at step 4."""
    for step in range(first, last):
        logger.log_metrics({"train/loss": 1 / (step + 1), "epoch": step // 5}, step)
        if step >= 4:
            logger.log_metrics({"lr": torch.tensor(0.5)}, step)
        if step % 3 == 2:
            logger.log_metrics({"val/loss": 0.1 * step}, step)
    return logger


def rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_rows_are_merged_by_step_and_columns_may_come_late(tmp_path):
    path = tmp_path / "metrics.csv"
    log(MetricsCsvLogger(path), 0, 6)
    found = rows(path)
    assert [row["step"] for row in found] == list("012345")
    assert list(found[0]) == ["step", "train/loss", "epoch", "val/loss", "lr"]
    assert found[2] == {"step": "2", "train/loss": repr(1 / 3), "epoch": "0", "val/loss": "0.2", "lr": ""}
    assert found[5]["lr"] == "0.5"


def test_each_row_is_on_disk_at_once(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = MetricsCsvLogger(path)
    for step in range(3):
        logger.log_metrics({"a": float(step)}, step)
        assert rows(path)[-1] == {"step": str(step), "a": repr(float(step))}


def test_a_resumed_file_equals_the_undisturbed_one(tmp_path):
    log(MetricsCsvLogger(tmp_path / "whole.csv"), 0, 12)
    for crash, checkpoint in [(11, 6), (7, 7), (9, 2), (5, 3)]:
        path = tmp_path / f"cut-{crash}.csv"
        log(MetricsCsvLogger(path), 0, crash)
        log(MetricsCsvLogger(path, resume_step=checkpoint), checkpoint, 12)
        assert path.read_text() == (tmp_path / "whole.csv").read_text()


def test_rows_after_the_checkpoint_are_dropped(tmp_path):
    """Those of the first start that the second one does not log again, and their columns, are gone."""
    log(MetricsCsvLogger(tmp_path / "whole.csv"), 0, 3)
    path = tmp_path / "cut.csv"
    log(MetricsCsvLogger(path), 0, 11)
    log(MetricsCsvLogger(path, resume_step=2), 2, 3)
    assert path.read_text() == (tmp_path / "whole.csv").read_text()


def test_a_row_cut_short_by_a_crash_is_dropped(tmp_path):
    log(MetricsCsvLogger(tmp_path / "whole.csv"), 0, 12)
    path = tmp_path / "cut.csv"
    log(MetricsCsvLogger(path), 0, 9)
    path.write_text(path.read_text().rpartition(",")[0].rpartition(",")[0])
    log(MetricsCsvLogger(path, resume_step=8), 8, 12)
    assert path.read_text() == (tmp_path / "whole.csv").read_text()


def test_a_new_run_replaces_the_file(tmp_path):
    path = tmp_path / "metrics.csv"
    log(MetricsCsvLogger(path), 0, 9)
    log(MetricsCsvLogger(path), 0, 2)
    assert [row["step"] for row in rows(path)] == ["0", "1"]
    assert list(rows(path)[0]) == ["step", "train/loss", "epoch"]


def test_a_late_value_finds_its_row(tmp_path):
    path = tmp_path / "metrics.csv"
    logger = log(MetricsCsvLogger(path), 0, 4)
    logger.log_metrics({"late": float("nan")}, 1)
    logger.log_metrics({"train/loss": 7.0}, 3)
    logger.log_metrics({"without a step": 1.0})
    found = rows(path)
    assert [row["late"] for row in found] == ["", "nan", "", ""]
    assert found[3]["train/loss"] == "7.0"
    assert found[3]["without a step"] == "1.0"


@contextmanager
def no_file_longer_than(size):
    """As on a full disk: what a write still has room for is written, the rest is an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def log_on_a_full_disk(logger, first, last, size):
    with no_file_longer_than(size):
        log(logger, first, last)
        logger.finalize("")


@pytest.mark.parametrize("full_from", [0, 2, 4, 7])
@pytest.mark.parametrize("room", [0, 5])
def test_rows_that_a_full_disk_does_not_take_follow_later(tmp_path, full_from, room):
    """Late columns and values for an earlier row come while it is full, too; what is there is never half a row."""
    log(MetricsCsvLogger(tmp_path / "whole.csv"), 0, 12)
    path = tmp_path / "full.csv"
    logger = log(MetricsCsvLogger(path), 0, full_from)
    before = path.read_text() if full_from else "step\n"
    with pytest.warns(UserWarning, match=r"full\.csv was not written: .* Its rows are kept") as warned:
        log_on_a_full_disk(logger, full_from, full_from + 3, len(before) + room)
    assert len(warned) == 1
    assert (path.read_text() if path.exists() else "") in before
    log(logger, full_from + 3, 9)
    logger.finalize("")
    log(logger, 9, 12)
    assert path.read_text() == (tmp_path / "whole.csv").read_text()


def test_a_resume_on_a_full_disk_drops_rows_later(tmp_path):
    log(MetricsCsvLogger(tmp_path / "whole.csv"), 0, 12)
    path = tmp_path / "cut.csv"
    log(MetricsCsvLogger(path), 0, 9)
    logger = MetricsCsvLogger(path, resume_step=6)
    with pytest.warns(UserWarning, match="was not written"):
        log_on_a_full_disk(logger, 6, 8, 20)
    log(logger, 8, 12)
    assert path.read_text() == (tmp_path / "whole.csv").read_text()
