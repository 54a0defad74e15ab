"""Section 4.3: what a bottlenecked token embedding costs."""

import time

from benchmarks.paper.drawing import COLOURS, bars, canvas, label
from benchmarks.paper.features import preparing, stored
from benchmarks.paper.figure2 import peak_lr
from benchmarks.paper.statistics import Claim, differences, spread
from benchmarks.paper.study import Findings, Results, Settings, Study, Table, Values, Workspace
from benchmarks.paper.table2 import AVERAGE, RATE, language_recalls, multilingual_task
from benchmarks.paper.training import num_parameters, trainer

LOSSES = ("sigmoid", "softmax")
FULL = "full"
COST = 0.005  # the paper's "about half a percent"


def cells(workspace: Workspace) -> list[Settings]:
    """The full table and two bottlenecks, both losses."""
    widths, batch, examples = workspace.pick(((None, 96, 32), 512, 131_072), ((None, 8), 256, 1024))
    fixed = {"batch": batch, "lr": peak_lr(batch, RATE), "examples": examples}
    return workspace.each_seed(
        [{"loss": loss, "bottleneck": k, "name": str(k or FULL), **fixed} for k in widths for loss in LOSSES]
    )


def run(settings: Settings, workspace: Workspace) -> Values:
    """As Table 2, with seconds a step and the size of the text tower."""
    task = multilingual_task(settings, workspace)
    data = stored("languages", workspace, settings["seed"], settings["batch"])
    steps = settings["examples"] // settings["batch"]
    start = time.process_time()
    trainer(steps, workspace).fit(task, data)
    seconds = (time.process_time() - start) / steps
    size = {"parameters": num_parameters(task.network.text_tower), "cpu_seconds_a_step": seconds}
    return language_recalls(task.network, workspace) | size


def findings(results: Results) -> Findings:
    """Metric, size and time of each width; the bottlenecks against the full table."""
    names = results.known("name")
    table = Table(["K", *LOSSES, "million parameters", "MiB with AdamW", "CPU ms a step"])
    for name in names:
        cell = results.where(name=name, loss="sigmoid")
        size = [value / 1e6 for value in cell.values("parameters")[:1]]
        memory = [f"{millions * 1e6 * 16 / 2**20:,.0f}" for millions in size]  # weight, gradient, two moments in fp32
        metrics = [spread(results.where(name=name, loss=loss).values(AVERAGE)) for loss in LOSSES]
        shown = [f"{size[0]:.2f}", memory[0]] if size else ["-", "-"]
        table.rows.append([name, *metrics, *shown, spread(cell.values("cpu_seconds_a_step"), 1000)])
    claims = []
    for name in names:
        for loss in LOSSES if name != FULL else ():
            gaps = differences(*(results.where(name=n, loss=loss).by_seed(AVERAGE) for n in (name, FULL)))
            claims.append(Claim(f"K = {name} like the full table, {loss}", gaps, margin=COST, kind="same"))
    figure, panels = canvas([f"{loss}: mean recall at 1 of twelve languages [%]" for loss in LOSSES])
    for axes, loss in zip(panels, LOSSES, strict=True):
        bars(axes, {name: results.where(name=name, loss=loss).values(AVERAGE) for name in names}, COLOURS)
        label(axes, "columns K of the token table", "")
    return Findings(str(table), claims, figure)


STUDY = Study(
    "bottleneck",
    "The bottlenecked token embedding",
    "Section 4.3: N x K and K x W in the place of N x W, with K = 96 and W = 768, cost about half a point of ImageNet "
    "zero-shot accuracy with a vocabulary of 250k.",
    "CLIP's 49,408 byte pairs, W = 256, K = 96 and 32, trained as in Table 2 at batch 512. The margin is half a point, "
    "in either direction. Without layers above it the table is all of the text tower but a projection, where K must "
    "cost most. Times are of the CPU.",
    cells,
    run,
    findings,
    preparing("languages"),
)
