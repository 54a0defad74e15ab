"""Figure 3: the duration of training at a small and at a large batch."""

from collections.abc import Sequence

from matplotlib.figure import Figure

from benchmarks.paper.drawing import OF_LOSS, canvas, label, line
from benchmarks.paper.features import preparing
from benchmarks.paper.figure2 import LOSSES, peak_lr, run
from benchmarks.paper.statistics import Claim, differences, spread
from benchmarks.paper.study import Findings, Results, Settings, Study, Table, Workspace
from benchmarks.paper.training import MAIN, OTHER

SMALL, LARGE = 128, 2048
DURATIONS = [2**n for n in range(14, 19)]
# As in Figure 2: the best of 1, 3 and 10 on seed 0, for every duration.
RATES = {
    (SMALL, "sigmoid"): [10.0, 10.0, 10.0, 10.0, 10.0],
    (SMALL, "softmax"): [10.0, 10.0, 10.0, 10.0, 10.0],
    (LARGE, "sigmoid"): [1.0, 3.0, 1.0, 3.0, 3.0],
    (LARGE, "softmax"): [3.0, 3.0, 3.0, 10.0, 1.0],
}


def cells(workspace: Workspace) -> list[Settings]:
    """Two batches, several durations, both losses."""
    sizes, durations = workspace.pick(((SMALL, LARGE), DURATIONS), ((64, 256), [512, 1024]))
    return workspace.each_seed(
        [
            {"loss": loss, "batch": size, "rate": rate, "lr": peak_lr(size, rate), "examples": examples}
            for number, examples in enumerate(durations)
            for batch, size in zip((SMALL, LARGE), sizes, strict=True)
            for loss in LOSSES
            for rate in [RATES[batch, loss][number]]
        ]
    )


def findings(results: Results) -> Findings:
    """The large batch against the small one at the shortest and at the longest duration; the sigmoid decides."""
    batches, durations = sorted(results.known("batch")), sorted(results.known("examples"))
    ways = [(loss, batch) for loss in LOSSES for batch in batches]
    table = Table(["examples", *(f"{loss} {b:,}: {what}" for loss, b in ways for what in ("seen R@1", "unseen R@5"))])
    for examples in durations:
        found = [results.where(loss=loss, batch=b, examples=examples) for loss, b in ways]
        row = [spread(cell.values(metric)) for cell in found for metric in (MAIN, OTHER)]
        table.rows.append([f"{examples:,}", *row])
    return Findings(str(table), _claims(results, batches, durations), _draw(results, ways, durations))


def _claims(results: Results, batches: Sequence[int], durations: Sequence[int]) -> list[Claim]:
    if len(batches) < 2:
        return []
    (small, large), claims = batches, []
    for loss in LOSSES:
        for first, second, examples in ((small, large, durations[0]), (large, small, durations[-1])):
            pair = [results.where(loss=loss, batch=b, examples=examples).by_seed(MAIN) for b in (first, second)]
            text = f"{loss}, batch {first:,} over {second:,} after {examples:,} examples"
            claims.append(Claim(text, differences(*pair), decides=loss == "sigmoid"))
    return claims


def _draw(results: Results, ways: Sequence[tuple[str, int]], durations: Sequence[int]) -> Figure:
    figure, panels = canvas(["Seen concepts: recall at 1 [%]", "Unseen concepts: recall at 5 [%]"])
    for axes, metric in zip(panels, (MAIN, OTHER), strict=True):
        for number, (loss, batch) in enumerate(ways):
            points = {e: results.where(loss=loss, batch=batch, examples=e).values(metric) for e in durations}
            line(axes, points, f"{loss}, batch {batch:,}", OF_LOSS[loss], ("--", "-")[number % 2])
        label(axes, "examples seen", "", durations)
    return figure


STUDY = Study(
    "figure3",
    "Figure 3: duration against batch",
    "Section 4.1: a large batch (262k) is clearly better than a small one (8k), but only with a long schedule; with a "
    "short one it makes too few steps.",
    "SigLiT on stored features, batches of 128 and 2,048, 16,384 to 262,144 examples, each with a schedule of its own "
    "(8 to 2,048 steps). The peak rate of each setting was the best of three on seed 0, which is in no result. The "
    "paper has the sigmoid only, which decides.",
    cells,
    run,
    findings,
    preparing("english"),
)
