"""The page and the table of retrieval, and the diagram of pairs."""

import math

import torch
from PIL import Image
from torch.nn.functional import normalize

from siglightning.callbacks.reliability import draw_reliability
from siglightning.callbacks.retrieval_page import as_table, draw_retrieval
from siglightning.evaluation import Evaluation, MetricValue, pair_calibration

VALUE = MetricValue(0.5, 0.01, 0.4, 0.6, 100)
METRICS = {f"{way}_recall@{k}": VALUE for way in ("i2t", "t2i") for k in (1, 5, 10)}


def test_the_table_leaves_empty_what_a_set_has_not():
    unknown = MetricValue(0.1, math.nan, 0.0, 0.2, 5)
    sets = {
        "one": Evaluation("one", {**METRICS, "zeroshot_acc": VALUE}),
        "two": Evaluation("two", {"t2i_recall@1": VALUE, "pair_ece": unknown}),
    }
    columns, rows = as_table(sets)
    assert columns[:5] == ["set", "i2t_recall@1", "i2t_recall@1_low", "i2t_recall@1_high", "i2t_recall@1_chance"]
    assert not any(name.startswith("zeroshot") for name in columns)
    one, two = (dict(zip(columns, row, strict=True)) for row in rows)
    assert (one["set"], one["t2i_recall@10"], one["pair_ece"]) == ("one", 0.5, None)
    assert [two[f"pair_ece{end}"] for end in ("", "_low", "_high", "_chance")] == [0.1, 0.0, 0.2, None]
    assert two["i2t_recall@5_low"] is None


def test_the_page_has_a_line_for_each_set(tmp_path):
    for count in (1, 37):
        sets = {f"set {number}": Evaluation(f"set {number}", METRICS) for number in range(count)}
        draw_retrieval(sets, tmp_path / f"{count}.png")
    one, many = (Image.open(tmp_path / f"{count}.png").size for count in (1, 37))
    assert one[0] == many[0]
    assert abs(many[1] - one[1] - 36 * 0.23 * 150) <= 1


def test_pairs_have_a_diagram_with_equal_bins_and_one_by_logit(tmp_path):
    g = torch.Generator().manual_seed(0)
    image = normalize(torch.randn(300, 8, generator=g), dim=1)
    ids = torch.arange(300)
    found = pair_calibration(image, normalize(image + 0.2 * torch.randn(300, 8, generator=g), dim=1), ids, ids, 3, -15)
    path = tmp_path / "pairs.png"
    draw_reliability({"equal bins": found.equal_width, "by logit": found.by_logit}, "val", path)
    assert Image.open(path).width == round(7.6 * 150)
