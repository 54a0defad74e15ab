"""The page of probes."""

from PIL import Image

from siglightning.callbacks.probe_page import draw_probes
from siglightning.evaluation import Evaluation, MetricValue

VALUE = MetricValue(0.5, 0.1, 0.4, 0.6, 100)


def test_each_set_has_a_panel_whatever_was_probed(tmp_path):
    shots = {f"fewshot@{count}": VALUE for count in (1, 5, 10, 25)}
    kinds = {
        "all": {"zeroshot_acc": VALUE, **shots, "probe_acc": VALUE, "probe_acc@5": VALUE},
        "few-shot $x$": shots,
        "probe": {"acc": VALUE, "probe_acc": VALUE},
        "one": {"fewshot@5": MetricValue(1.0, 0.1, 0.99, 1.0 - 1e-17, 10)},
    }
    sizes = []
    for count in (1, 3, 4):
        sets = {name: Evaluation(name, metrics) for name, metrics in list(kinds.items())[:count]}
        draw_probes(sets, tmp_path / "page.png")
        sizes.append(Image.open(tmp_path / "page.png").size)
    assert sizes[1][0] == sizes[2][0] == sizes[0][0] + round(2 * 3.6 * 150)  # three panels in a row
    assert sizes[2][1] == sizes[1][1] + round(2.6 * 150)  # then another row
