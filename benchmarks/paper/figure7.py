"""Figure 7: robustness to five kinds of label noise."""

from benchmarks.paper.drawing import OF_LOSS, canvas, label, line
from benchmarks.paper.features import NOISE_SEED, locked_network, preparing, stored
from benchmarks.paper.figure2 import tuned
from benchmarks.paper.statistics import Claim, differences, spread
from benchmarks.paper.study import Findings, Results, Settings, Study, Table, Values, Workspace
from benchmarks.paper.training import MAIN, build, contrastive, fit_and_measure, trainer
from siglightning.data import LabelNoise

KINDS = {
    "image": ["image"],
    "text": ["text"],
    "alignment": ["alignment"],
    "image & text": ["image", "text"],
    "image, text & alignment": ["image", "text", "alignment"],
}
LOSSES = ("sigmoid", "softmax")


def cells(workspace: Workspace) -> list[Settings]:
    """Both losses without noise and with every kind at every probability."""
    batch, examples = workspace.pick((512, 131_072), (256, 1024))
    shares = workspace.pick((0.1, 0.3, 0.5), (0.5,))
    kinds = workspace.pick(tuple(KINDS), ("image, text & alignment",))
    noises = [{"kind": "none", "p": 0.0}, *({"kind": kind, "p": p} for kind in kinds for p in shares)]
    fixed = {loss: {"batch": batch, "examples": examples, **tuned(loss, batch)} for loss in LOSSES}
    return workspace.each_seed([{"loss": loss, **noise, **fixed[loss]} for noise in noises for loss in LOSSES])


def run(settings: Settings, workspace: Workspace) -> Values:
    """Two projections on stored features, some of them of noise."""
    corrupt = KINDS.get(settings["kind"])
    noise = LabelNoise(corrupt, settings["p"], NOISE_SEED) if corrupt else None
    task = contrastive(build(settings, locked_network, workspace), settings)
    data = stored("english", workspace, settings["seed"], settings["batch"], noise)
    return fit_and_measure(task, data, trainer(settings["examples"] // settings["batch"], workspace))


def findings(results: Results) -> Findings:
    """Metric over the probability, and sigmoid over softmax at every one."""
    table = Table(["noise", "p", *LOSSES, "difference"])
    claims = []
    for kind in results.known("kind"):
        for p in results.where(kind=kind).known("p"):
            both = [results.where(kind=kind, p=p, loss=loss).values(MAIN) for loss in LOSSES]
            gaps = _lead(results, kind, p)
            table.rows.append([kind, f"{p:g}", *(spread(one) for one in both), spread([*gaps.values()])])
            if p == max(results.where(kind=kind).known("p")) and kind != "none":
                grown = differences(gaps, _lead(results, "none", 0.0))
                claims.append(Claim(f"sigmoid over softmax, {kind} at {p:g}", [*gaps.values()]))
                claims.append(Claim(f"its lead over that without noise, {kind} at {p:g}", grown, decides=False))
    return Findings(str(table), claims, _draw(results))


def _lead(results: Results, kind: str, p: float) -> dict[int, float]:
    """Sigmoid less softmax, by seed."""
    first, second = (results.where(kind=kind, p=p, loss=loss).by_seed(MAIN) for loss in LOSSES)
    return dict(zip(sorted(first.keys() & second.keys()), differences(first, second), strict=True))


def _draw(results: Results):
    kinds = [kind for kind in results.known("kind") if kind != "none"]
    figure, panels = canvas(kinds or ["none"], width=3.0)
    for axes, kind in zip(panels, kinds, strict=False):
        for loss in LOSSES:
            found = results.where(loss=loss)
            places = {0.0: found.where(kind="none").values(MAIN)}
            places |= {p: found.where(kind=kind, p=p).values(MAIN) for p in found.where(kind=kind).known("p")}
            line(axes, places, loss, OF_LOSS[loss])
        label(axes, "probability", "seen concepts: recall at 1 [%]" if axes is panels[0] else "")
    bottom, top = min(a.get_ylim()[0] for a in panels), max(a.get_ylim()[1] for a in panels)
    for axes in panels:
        axes.set_ylim(bottom, top)
    return figure


STUDY = Study(
    "figure7",
    "Figure 7: robustness to label noise",
    "Section 4.10: with five kinds of noise and growing probability, sigmoid stays ahead of softmax (M/16, batch 16k).",
    "SigLiT on stored features, batch 512, 256 steps, rates as in Figure 2. Locked towers cannot learn the noise: only "
    "projections can. Captions change places in the whole set, not in a batch. Claims are those at the largest "
    "probability; whether the lead is one over noise, and was not there without it, stands beside them.",
    cells,
    run,
    findings,
    preparing("english", "noise"),
)
