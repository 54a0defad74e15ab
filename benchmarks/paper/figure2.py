"""Figure 2: the batch at a fixed number of examples seen."""

import math
from collections.abc import Sequence

from benchmarks.paper.drawing import OF_LOSS, canvas, label, line
from benchmarks.paper.features import locked_network, preparing, stored
from benchmarks.paper.statistics import Claim, differences, spread
from benchmarks.paper.study import Findings, Results, Settings, Study, Table, Values, Workspace
from benchmarks.paper.training import MAIN, OTHER, build, contrastive, fit_and_measure, trainer

LOSSES = ("sigmoid", "softmax")
# Times 1e-3 sqrt(batch / 512): the best of 1, 3, 10 and 30 in recall on seed 0, up to a batch, which is in no result.
RATES = {"sigmoid": {512: 10.0, 1024: 3.0, 4096: 1.0}, "softmax": {1024: 10.0, 4096: 3.0}}
SMALL, LARGE = 64, 2048  # where the claims are made


def peak_lr(batch: int, rate: float) -> float:
    """A learning rate that grows with the root of the batch."""
    return rate * 1e-3 * math.sqrt(batch / 512)


def tuned(loss: str, batch: int) -> Settings:
    """The learning rate for a loss and a batch, and the multiple that it is."""
    rate = next(rate for largest, rate in RATES[loss].items() if batch <= largest)
    return {"rate": rate, "lr": peak_lr(batch, rate)}


def batches(workspace: Workspace) -> Sequence[int]:
    """Powers of two."""
    return workspace.pick([2**n for n in range(4, 13)], [SMALL, 256])


def cells(workspace: Workspace) -> list[Settings]:
    """Both losses, every batch."""
    examples = workspace.pick(98_304, 1024)
    return workspace.each_seed(
        [
            {"loss": loss, "batch": batch, **tuned(loss, batch), "examples": examples}
            for batch in batches(workspace)
            for loss in LOSSES
        ]
    )


def run(settings: Settings, workspace: Workspace) -> Values:
    """Two projections on stored features."""
    task = contrastive(build(settings, locked_network, workspace), settings)
    data = stored("english", workspace, settings["seed"], settings["batch"])
    return fit_and_measure(task, data, trainer(settings["examples"] // settings["batch"], workspace))


def findings(results: Results) -> Findings:
    """Both metrics over the batch, and what the paper says of small and of large ones."""
    found = {
        (loss, batch): results.where(loss=loss, batch=batch) for loss in LOSSES for batch in results.known("batch")
    }
    table = Table(["batch", *(f"{loss}: {what}" for loss in LOSSES for what in ("seen R@1", "unseen R@5", "rate"))])
    for batch in results.known("batch"):
        cells_of = [found[loss, batch] for loss in LOSSES]
        shown = [
            (spread(c.values(MAIN)), spread(c.values(OTHER)), ", ".join(f"{r:g}" for r in sorted(c.known("rate"))))
            for c in cells_of
        ]
        table.rows.append([f"{batch:,}", *(text for texts in shown for text in texts)])
    figure, panels = canvas(["Seen concepts: recall at 1 [%]", "Unseen concepts: recall at 5 [%]"])
    for axes, metric in zip(panels, (MAIN, OTHER), strict=True):
        for loss in LOSSES:
            points = {batch: found[loss, batch].values(metric) for batch in results.known("batch")}
            line(axes, points, loss, OF_LOSS[loss])
        label(axes, "batch", "", results.known("batch"))
    return Findings(str(table), _claims(found, results.known("batch")), figure)


def _claims(found: dict[tuple[str, int], Results], batches: Sequence[int]) -> list[Claim]:
    def gap(batch: int) -> list[float]:
        return differences(*(found[loss, batch].by_seed(MAIN) for loss in LOSSES))

    small = [Claim(f"sigmoid over softmax at {SMALL}", gap(SMALL))] if SMALL in batches else []
    if LARGE not in batches:
        return small
    sigmoid = [found["sigmoid", batch].by_seed(MAIN) for batch in (SMALL, LARGE, max(batches))]
    return [
        *small,
        Claim(f"sigmoid and softmax alike at {LARGE:,}", gap(LARGE), kind="same"),
        Claim(f"sigmoid at {LARGE:,} over {SMALL}", differences(sigmoid[1], sigmoid[0])),
        Claim(
            f"sigmoid at {max(batches):,} no better than at {LARGE:,}",
            differences(sigmoid[2], sigmoid[1]),
            kind="no more",
        ),
    ]


STUDY = Study(
    "figure2",
    "Figure 2: the batch at fixed examples seen",
    "Sections 4.1 and 4.2: sigmoid is clearly ahead at small batches (below 16k), both are alike at large ones, larger "
    "batches are better up to 32k, and beyond that nothing is gained.",
    "SigLiT on stored features, 98,304 examples, batches of 16 to 4,096 (6,144 to 24 steps), b matched to the batch. "
    "The peak rate for each loss and batch was the best of four on seed 0, which is in no result. The "
    "data hold 5,331 pictures, so that the largest batch is most of an epoch, and few concepts are "
    "there only once. With as many examples, large batches make few steps: Figure 3 varies the latter.",
    cells,
    run,
    findings,
    preparing("english"),
)
