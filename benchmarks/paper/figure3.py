"""Figure 3: the duration of training at a small and at a large batch."""

from benchmarks.paper.drawing import COLOURS, canvas, label, line
from benchmarks.paper.features import preparing
from benchmarks.paper.figure2 import RATES, peak_lr, run
from benchmarks.paper.statistics import Claim, differences, spread
from benchmarks.paper.study import Findings, Results, Settings, Study, Table, Workspace
from benchmarks.paper.training import MAIN, OTHER


def cells(workspace: Workspace) -> list[Settings]:
    """Two batches, several durations, the sigmoid loss."""
    batches = workspace.pick((128, 2048), (64, 256))
    durations = workspace.pick([2**n for n in range(14, 19)], [512, 1024])
    return workspace.each_seed(
        [
            {"loss": "sigmoid", "batch": batch, "rate": rate, "lr": peak_lr(batch, rate), "examples": examples}
            for examples in durations
            for batch in batches
            for rate in workspace.pick(RATES, RATES[:1])
        ]
    )


def findings(results: Results) -> Findings:
    """The large batch against the small one at the shortest and at the longest duration."""
    batches, durations = sorted(results.known("batch")), sorted(results.known("examples"))
    found = {
        (batch, examples): results.where(batch=batch, examples=examples).tuned("rate", MAIN)
        for batch in batches
        for examples in durations
    }
    table = Table(["examples", *(f"batch {b:,}: {what}" for b in batches for what in ("seen R@1", "unseen R@5"))])
    for examples in durations:
        row = [spread(found[b, examples].values(metric)) for b in batches for metric in (MAIN, OTHER)]
        table.rows.append([f"{examples:,}", *row])
    figure, panels = canvas(["Seen concepts: recall at 1 [%]", "Unseen concepts: recall at 5 [%]"])
    for axes, metric in zip(panels, (MAIN, OTHER), strict=True):
        for batch, colour in zip(batches, COLOURS, strict=False):
            line(axes, {e: found[batch, e].values(metric) for e in durations}, f"batch {batch:,}", colour)
        label(axes, "examples seen", "", durations)
    if len(batches) < 2:
        return Findings(str(table), [], figure)

    def over(first: int, second: int, examples: int) -> list[float]:
        return differences(*(found[batch, examples].by_seed(MAIN) for batch in (first, second)))

    small, large = batches
    claims = [
        Claim(f"batch {small:,} over {large:,} after {durations[0]:,} examples", over(small, large, durations[0])),
        Claim(f"batch {large:,} over {small:,} after {durations[-1]:,} examples", over(large, small, durations[-1])),
    ]
    return Findings(str(table), claims, figure)


STUDY = Study(
    "figure3",
    "Figure 3: duration against batch",
    "Section 4.1: a large batch (262k) is clearly better than a small one (8k), but only with a long schedule; with a "
    "short one it makes too few steps.",
    "SigLiT on stored features, the sigmoid loss, batches of 128 and 2,048, 16,384 to 262,144 examples, each with a "
    "schedule of its own (8 to 2,048 steps). Peak rates as in Figure 2.",
    cells,
    run,
    findings,
    preparing("english"),
)
