"""Section 4.2: twice the batch in the same memory."""

import math

from benchmarks.paper.drawing import COLOURS, canvas, label, line
from benchmarks.paper.statistics import Claim, differences, spread
from benchmarks.paper.study import Findings, Results, Settings, Study, Table, Values, Workspace
from siglightning.commands.bench.measure import Workload
from siglightning.commands.bench.measure import memory as measure_memory

NAIVE, TILED = "sigmoid, naive", "sigmoid, tiled (ours)"
SOFTMAX, STREAMING = "softmax, naive", "softmax, streaming (ours)"
FORMS = (NAIVE, TILED, SOFTMAX, STREAMING)


def cells(workspace: Workspace) -> list[Settings]:
    """Every form at every batch, with small towers; a seed is a repetition."""
    sizes = workspace.pick((1024, 2048, 4096, 8192), (256, 512))
    forms = workspace.pick(FORMS, (TILED, SOFTMAX))
    return workspace.each_seed([{"form": form, "pairs": pairs} for pairs in sizes for form in forms])


def run(settings: Settings, workspace: Workspace) -> Values:
    """Growth of the resident set in one step, in MiB, in a process of its own (`siglightning bench loss`)."""
    found = measure_memory(settings["form"], Workload(1, settings["pairs"], 512, threads=1, with_towers=True))
    return {"extra_mib": found.extra_mib, "saved_mib": found.saved_mib}


def findings(results: Results) -> Findings:
    """MiB over the batch; a sigmoid of twice the batch against the naive softmax."""
    sizes = sorted(results.known("pairs"))
    forms = results.known("form")
    table = Table(["MiB", *(f"{pairs:,} pairs" for pairs in sizes)])
    for form in forms:
        table.rows.append([form, *(spread(results.where(form=form, pairs=p).values("extra_mib"), 1) for p in sizes)])
    figure, (axes,) = canvas(["Memory of a step with small towers [MiB]"], width=6.0)
    for form, colour in zip(forms, COLOURS, strict=False):
        line(axes, {p: results.where(form=form, pairs=p).values("extra_mib") for p in sizes}, form, colour, factor=1.0)
    label(axes, "batch", "", sizes)
    return Findings(str(table), _claims(results, sizes), figure)


def _claims(results: Results, sizes: list[int]) -> list[Claim]:
    """By logarithms to base two: how much less memory the sigmoid needs for twice the pairs; the paper's decides."""
    base = 2048 if 2048 in sizes else sizes[0]

    def doublings(form: str, pairs: int) -> dict[int, float]:
        found = results.where(form=form, pairs=pairs).by_seed("extra_mib")
        return {seed: math.log2(max(value, 1.0)) for seed, value in found.items()}

    return [
        Claim(
            f"{first} of {2 * base:,} pairs in the memory of {second} of {base:,}",
            differences(doublings(second, base), doublings(first, 2 * base)),
            margin=0.1,
            unit=("doublings to spare", 1.0),
            decides=(first, second) == (TILED, SOFTMAX),
        )
        for first, second in ((NAIVE, SOFTMAX), (TILED, SOFTMAX), (TILED, STREAMING))
        if {first, second} <= {*results.known("form")}
    ]


STUDY = Study(
    "memory",
    "Memory at a fixed budget: 4,096 against 2,048",
    "Section 4.2: on four TPUv4 a Base SigLIP fits with a batch of 4,096, the corresponding CLIP only with 2,048.",
    "The memory of one step of two small towers and the loss on one process, measured by what `siglightning bench loss "
    "--find-max-batch` uses. A seed is a repetition. The first claim is sigmoid against softmax as both are usually "
    "written; the second changes loss and implementation at once, as the paper does; the third only the loss.",
    cells,
    run,
    findings,
    timed=True,
)
