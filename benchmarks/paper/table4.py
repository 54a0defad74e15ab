"""Table 4: initial values of the bias b and the temperature t'."""

import math
from typing import Any

from benchmarks.paper.drawing import COLOURS, bars, canvas, label
from benchmarks.paper.features import locked_network, preparing, stored
from benchmarks.paper.statistics import Claim, differences, spread
from benchmarks.paper.study import Findings, Results, Settings, Study, Table, Values, Workspace
from benchmarks.paper.training import MAIN, OTHER, build, contrastive, fit_and_measure, trainer

ROWS: dict[str, tuple[float | str | None, float]] = {
    "n/a, log 10": (None, math.log(10)),
    "-10, log 10": (-10.0, math.log(10)),
    "-10, log 1": (-10.0, 0.0),
    "0, log 10": (0.0, math.log(10)),
    "0, log 1": (0.0, 0.0),
    "auto, log 10": ("auto", math.log(10)),
}
OURS, BEST = "auto, log 10", "-10, log 10"
ZEROSHOT = "seen_concepts zeroshot_acc"


def cells(workspace: Workspace) -> list[Settings]:
    """Six rows and the softmax loss, each on as many examples."""
    batch, examples = workspace.pick((1024, 196_608), (256, 2048))
    fixed: dict[str, Any] = {"batch": batch, "examples": examples, "lr": 3e-3}
    rows = [{"loss": "sigmoid", "row": row, "init_bias": b, "init_log_scale": t} for row, (b, t) in ROWS.items()]
    return workspace.each_seed([one | fixed for one in [*rows, {"loss": "softmax", "row": "softmax"}]])


def run(settings: Settings, workspace: Workspace) -> Values:
    """Two projections on stored features."""
    task = contrastive(build(settings, locked_network, workspace), settings)
    data = stored("english", workspace, settings["seed"], settings["batch"])
    return fit_and_measure(task, data, trainer(settings["examples"] // settings["batch"], workspace))


def findings(results: Results) -> Findings:
    """A row each, and the paper's over every other of its five."""
    names = [*ROWS, "softmax"]
    table = Table(["b, t'", "seen R@1", "unseen R@5", "zero-shot", "final b", "final t"])
    for name in names:
        row = results.where(row=name)
        shown = [spread(row.values(metric)) for metric in (MAIN, OTHER, ZEROSHOT)]
        table.rows.append([name, *shown, *(spread(row.values(f"train/logit_{v}"), 1) for v in ("bias", "scale"))])
    best = results.where(row=BEST).by_seed(MAIN)
    claims = [
        Claim(f"b, t' = {BEST} over {name}", differences(best, results.where(row=name).by_seed(MAIN)))
        for name in ROWS
        if name not in (BEST, OURS)
    ]
    figure, panels = canvas(["Seen concepts: recall at 1 [%]", "Unseen concepts: recall at 5 [%]"], width=5.2)
    for axes, metric in zip(panels, (MAIN, OTHER), strict=True):
        bars(axes, {n.replace(", ", "\n"): results.where(row=n).values(metric) for n in names}, COLOURS[:1])
        label(axes, "initial b, t'", "")
    return Findings(str(table), claims, figure)


STUDY = Study(
    "table4",
    "Table 4: initial bias and temperature",
    "Section 4.9: b = -10 with t' = log 10 is better than no bias, than t' = log 1 and than b = 0 (Base, batch 8k).",
    "SigLiT on stored features, batch 1,024, where one pair in 1,023 is b = -6.9 (`auto`); 192 steps.",
    cells,
    run,
    findings,
    preparing("english"),
)
