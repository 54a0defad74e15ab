"""The doctor's round, and what it sees in data: each defect is planted once, and it is quiet without."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from examined import CHECKS, case_of, drawings, found, one, png, quiet, table_data, with_network
from scipy.stats import binomtest

from siglightning.commands.doctor import examine
from siglightning.commands.doctor.findings import Finding, NamedCheck
from siglightning.commands.doctor.pictures import Looked, _duplicates, binomial_interval, least_share

WORDS = [f"a drawing of thing number {number}" for number in range(40)]
ELSEWHERE = ("classes", "loader")  # this run's data have no labels; what the other says depends on the machine


@pytest.mark.parametrize("name", [check.name for check in CHECKS if check.name not in ELSEWHERE])
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

    def overflows(case):
        raise torch.OutOfMemoryError("no 3 GiB are left")
        yield

    checks = [
        NamedCheck("first", breaks),
        NamedCheck("second", stumbles),
        NamedCheck("third", overflows),
        NamedCheck("fourth", lambda case: iter([Finding("ok", case)])),
    ]
    first, second, third, fourth = examine("all well", checks)
    assert [finding.text for finding in first.findings] == ["so far so good", "RuntimeError: a disk is gone"]
    assert first.level == "error"
    assert second.skipped == "stumbles over the same as first"
    assert "more memory" in third.findings[0].remedy
    assert [finding.text for finding in fourth.findings] == ["all well"]


def planted(case, **values):
    """The case with other tensors in its first batch."""
    case.__dict__["first"] = replace(case.first, batch={**case.first.batch, **values})
    return case


def test_black_pictures(small):
    black = torch.zeros_like(small.first.batch["image"])
    assert "no value of any picture is above 1" in one("sample", planted(small, image=black + 1), "error")


def test_pictures_of_one_colour(small):
    flat = 5 * torch.arange(32, dtype=torch.uint8)[:, None, None, None].expand(32, 3, 32, 32)
    assert "100% of 32 pictures show one colour alone" in one("sample", planted(small, image=flat), "warning")


def test_pictures_of_another_size(small):
    smaller = small.first.batch["image"][:, :, :16, :16]
    assert "expected uint8 pictures [3, 32, 32]" in one("sample", planted(small, image=smaller), "error")


def test_captions_that_say_nothing_or_all_the_same(tmp_path):
    pictures = [png(image) for image in drawings(40)]
    case = case_of(tmp_path, data=table_data(tmp_path, pictures, ["..."] * 40), model=with_network(canonicalize=True))
    text = one("sample", case, "warning")
    assert "8 of 8 captions give no token, such as '...'" in text
    assert "8 of 8 captions are '...'" in text


def test_pictures_that_cannot_be_read(tmp_path, monkeypatch):
    pictures = [png(image) for image in drawings(40)]
    pictures[3] = pictures[3][:200]
    pictures[7] = b"<html>404 not found</html>"
    data = table_data(tmp_path, pictures, WORDS, val=[png(image) for image in drawings(9, 50)])
    case = case_of(tmp_path, data=data)
    text = one("pictures", case, "warning")  # of 200, as training counts, 1 % is 2
    assert "train: 40 of 40 pictures read, 2 cannot be (1 damaged, 1 no picture)" in text
    assert "007.png" in text
    monkeypatch.setattr(case.data, "max_bad_fraction", 0.009)
    assert "training stops above 0.9%" in one("pictures", replace(case), "error")


def test_planted_duplicates_are_found_and_others_are_not(tmp_path):
    train, others = drawings(40), [png(image) for image in drawings(19, 3000)]
    half = [
        png(train[0]), png(train[1], size=48), png(train[2], quality=50), png(train[3].flip(2)),
        png(train[4].flip(2), size=90, quality=80), *others[:5],
    ]  # fmt: skip
    data = table_data(tmp_path, [png(image) for image in train], WORDS, val=half, test=[png(train[0]), *others])
    case = case_of(tmp_path, data=data, report=tmp_path / "report.json")
    findings = found("duplicates", case)
    (finding,) = (each for each in findings if each.level == "error")
    assert finding.values["counts"] == {"same pixels": 1, "nearly": 2, "mirrored": 2}
    assert [line.partition(" and ")[::2] for line in finding.lines] == [
        (f"val/00{row}.png", f"train/00{row}.png, {kind}")
        for row, kind in enumerate(("same pixels", "nearly", "nearly", "mirrored", "mirrored"))
    ]
    assert (tmp_path / "report-duplicates.png").stat().st_size > 10_000
    (few,) = (each for each in findings if each.level == "warning")
    assert "1 alike (1 same pixels), so 5.0% of the set" in few.text  # all was compared


@pytest.mark.parametrize(("twins", "level"), [(1, "warning"), (3, "warning"), (4, "error")])
def test_a_sample_is_an_error_where_it_leaves_no_doubt(twins, level):
    """100 of 526 beside 500 of 5,331: one near-twin by accident is an estimate of a tenth, but no proof of it."""
    other, train = (
        Looked(size, range(seen), [f"{row}" for row in range(seen)]) for size, seen in ((526, 100), (5331, 500))
    )
    found = _duplicates("val", other, train, {row: (row, "nearly") for row in range(twins)})
    low, high = (min(1.0, end * 5331 / 500) for end in binomtest(twins, 100).proportion_ci(0.95, "exact"))
    assert (found.level, low >= 0.1) == (level, level == "error")
    share = f"about {twins / 100 * 5331 / 500:.1%} (95 %: {low:.1%} to {high:.1%}) of the set is trained on"
    assert f"100 of 526 compared with 500 of 5,331 training pictures, {twins} alike" in found.text
    assert found.text.endswith(share)
    assert (found.values["low"], found.values["high"]) == pytest.approx((low, high), rel=1e-7)


@pytest.mark.parametrize(("hits", "count"), [(0, 7), (1, 100), (8, 526), (7, 7), (40, 1000), (1000, 1000)])
def test_the_interval_of_a_share_is_the_exact_one(hits, count):
    expected = binomtest(hits, count).proportion_ci(0.95, "exact")
    assert binomial_interval(hits, count) == pytest.approx(tuple(expected), rel=1e-7, abs=1e-12)


def test_a_sample_finds_a_leak_as_often_as_it_says():
    seen, of_training = 200, 0.1
    share = least_share(seen, of_training)
    draws = np.random.default_rng(0).random((4000, seen))
    caught = (draws < share * of_training).any(1).mean()
    assert caught == pytest.approx(0.95, abs=0.02)  # 4,000 draws: a standard error of .0034


def test_classes_without_training_pictures(tmp_path):
    lines = ["image,label"]
    for number, image in enumerate(drawings(16)):
        (tmp_path / f"{number}.png").write_bytes(png(image))
        lines.append(f"{number}.png,{('cat', 'dog')[number % 2]}")
    (tmp_path / "table.csv").write_text("\n".join(lines) + "\n")
    columns = {"image": "image", "captions": [], "label": "label"}
    settings = {"class_names": ["cat", "cow", "dog"], "columns": columns, "global_batch_size": 8}
    data = {
        "class_path": "siglightning.data.TableDataModule",
        "init_args": {"train": str(tmp_path / "table.csv"), "image_root": str(tmp_path), **settings},
    }
    case = case_of(tmp_path, data=data)
    assert "1 of 3 classes have no training picture: cow" in one("classes", case, "warning")


def test_captions_that_are_cut_and_then_alike(tmp_path):
    words = [f"one two three four {number}" for number in range(40)]
    data = table_data(tmp_path, [png(image) for image in drawings(40)], words)
    case = case_of(tmp_path, data=data, model=with_network(context_length=4))
    text = one("captions", case, "warning")
    assert "8 of 8 captions (100%) are longer than the context of 4 tokens" in text
    assert "context_length" in text
    assert "8 of them have another `match_id`" in one("negatives", case, "warning")
