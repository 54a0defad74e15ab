"""Figure 5: beta2 and the stability of training."""

import statistics
from collections.abc import Sequence

import numpy as np

from benchmarks.paper.drawing import BLUE, ORANGE, canvas, label
from benchmarks.paper.pocket import drawings, pocket_network
from benchmarks.paper.statistics import Claim, differences, spread
from benchmarks.paper.study import Findings, Results, Settings, Study, Table, Values, Workspace
from benchmarks.paper.training import MAIN, Curves, contrastive, fit_and_measure, trainer

BETAS = {0.95: BLUE, 0.999: ORANGE}
LOSSES = ("sigmoid", "softmax")
CURVES = ("train/loss", "train/grad_norm", "train/update_norm")
LARGEST = "largest update over the median before"
LATE = "loss of the last tenth"
WINDOW, FACTOR = 32, 2.0  # a spike is twice the median of the 32 steps before it


def leaps(values: Sequence[float]) -> list[float]:
    """Each step over the median of the ``WINDOW`` steps before it; the first ones, where all of it falls, left out."""
    return [values[i] / statistics.median(values[i - WINDOW : i]) for i in range(WINDOW, len(values))]


def spikes(values: Sequence[float]) -> int:
    """How often a series leaps above ``FACTOR``; steps next to each other are one spike."""
    above = [leap > FACTOR for leap in leaps(values)]
    return sum(now and not before for before, now in zip([False, *above], above, strict=False))


def cells(workspace: Workspace) -> list[Settings]:
    """Both betas, both losses."""
    batch, steps, lr = workspace.pick((256, 240, 3e-3), (64, 40, 3e-3))
    fixed = {"batch": batch, "steps": steps, "lr": lr}
    return workspace.each_seed([{"loss": loss, "beta2": beta, **fixed} for loss in LOSSES for beta in BETAS])


def run(settings: Settings, workspace: Workspace) -> Values:
    """A pocket SigLIP, every step logged, gradients not clipped: clipping would hide what is asked for."""
    task = contrastive(pocket_network(settings, workspace), settings)
    curves = Curves()
    options = {"logger": curves, "log_every_n_steps": 1, "gradient_clip_val": None}
    fitting = trainer(settings["steps"], workspace, **options)
    values = fit_and_measure(task, drawings(settings, workspace), fitting)
    series = {name: curves.found[name] for name in CURVES}
    counts = {f"spikes {name}": float(spikes(numbers)) for name, numbers in series.items()}
    losses = series["train/loss"]
    late = statistics.fmean(losses[-max(1, len(losses) // 10) :])
    return values | counts | {LARGEST: max(leaps(series["train/update_norm"])), LATE: late, "curves": series}


def findings(results: Results) -> Findings:
    """Spikes, the largest update and the metric of both betas."""
    table = Table(
        ["loss, beta2", "seen R@1", "late loss", "spikes of gradients", "of updates", "largest update / median"]
    )
    claims = []
    for loss in LOSSES:
        for beta in BETAS:
            cell = results.where(loss=loss, beta2=beta)
            names = (LATE, "spikes train/grad_norm", "spikes train/update_norm", LARGEST)
            table.rows.append(
                [f"{loss}, {beta:g}", spread(cell.values(MAIN)), *(spread(cell.values(n), 1) for n in names)]
            )
        low, high = (results.where(loss=loss, beta2=beta) for beta in BETAS)
        metrics = [cell.by_seed(LARGEST) for cell in (high, low)]
        unit = ("times the median", 1.0)
        claims.append(Claim(f"largest update of .999 over .95, {loss}", differences(*metrics), margin=0.5, unit=unit))
        lost = differences(high.by_seed(LATE), low.by_seed(LATE))
        claims.append(Claim(f"{LATE}, .999 over .95, {loss}", lost, margin=0.05, unit=("nats", 1.0)))
    return Findings(str(table), claims, _draw(results))


def _draw(results: Results):
    figure, panels = canvas(["Loss [nats]", "Gradient norm", "Parameter-update norm"])
    for axes, name in zip(panels, CURVES, strict=True):
        for beta, colour in BETAS.items():
            for loss, style in zip(LOSSES, ("-", ":"), strict=True):
                for number, cell in enumerate(results.where(loss=loss, beta2=beta).cells):
                    series = np.asarray(cell.values["curves"][name])
                    title = f"{loss}, beta2 = {beta:g}" if number == 0 else None
                    axes.plot(series, style, color=colour, alpha=0.6, linewidth=0.9, label=title)
        axes.set_yscale("log")
        axes.tick_params(which="both", labelsize=8)
        label(axes, "step", "", legend=axes is panels[0])
    return figure


STUDY = Study(
    "figure5",
    "Figure 5: beta2 and stability",
    "Section 4.7: with growing batches gradients spike, updates with beta2 = .999 become large and the loss suffers; "
    "beta2 = .95 keeps training stable.",
    "A pocket SigLIP from scratch (a ViT of 4 layers, a bag of words), batch 256, 240 steps at 3e-3 without clipping. "
    "An update is compared with the median of the 32 before it; margins: half a median, and 0.05 nats of "
    "the loss. So early recall is too low for a claim.",
    cells,
    run,
    findings,
)
