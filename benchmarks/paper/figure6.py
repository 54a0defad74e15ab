"""Figure 6: which negatives count."""

from benchmarks.paper.drawing import BLUE, GREEN, ORANGE, PURPLE, canvas, label, line
from benchmarks.paper.features import locked_network, preparing, stored
from benchmarks.paper.statistics import Claim, differences, spread
from benchmarks.paper.study import Findings, Results, Settings, Study, Table, Values, Workspace
from benchmarks.paper.training import MAIN, build, contrastive, fit_and_measure, trainer
from siglightning.losses import Negatives

KINDS = {"random": BLUE, "hard": ORANGE, "easy": GREEN, "hard, matched pairs": PURPLE}
ALL = "all"
BATCH, TINY_BATCH = 256, 64
SHOWN = {
    MAIN: "Seen concepts: recall at 1 [%]",
    "train/logit_bias": "Learned bias",
    "train/positive_logit": "Mean logit of pairs",
    "train/negative_logit": "Mean logit of negatives",
}


def cells(workspace: Workspace) -> list[Settings]:
    """No mask, and every kind at every ratio, the matched ones with more steps."""
    batch, steps, ratios = workspace.pick((BATCH, 256, (16, 64)), (TINY_BATCH, 8, (16,)))
    fixed = {"loss": "sigmoid", "batch": batch, "lr": 2e-3}
    settings = [{"kind": ALL, "ratio": batch - 1, "steps": steps, **fixed}]
    for ratio in ratios:
        longer = Negatives("hard", ratio).matched_steps(steps, batch)
        for kind in KINDS:
            matched = "matched" in kind
            settings.append({"kind": kind, "ratio": ratio, "steps": longer if matched else steps, **fixed})
    return workspace.each_seed(settings)


def run(settings: Settings, workspace: Workspace) -> Values:
    """Two projections on stored features, some negatives masked."""
    kind = settings["kind"].partition(",")[0]
    mask = None if kind == ALL else Negatives(kind, settings["ratio"], settings["seed"])  # type: ignore[arg-type]
    task = contrastive(build(settings, locked_network, workspace), settings, negatives=mask)
    data = stored("english", workspace, settings["seed"], settings["batch"])
    return fit_and_measure(task, data, trainer(settings["steps"], workspace))


def findings(results: Results) -> Findings:
    """Metric, bias and logits over the ratio, and the paper's order of the masks."""
    whole = results.where(kind=ALL)
    table = Table(["kept", "1 :", "seen R@1", "bias", "positive logit", "negative logit", "steps"])
    for kind in (ALL, *KINDS):
        for ratio in results.where(kind=kind).known("ratio"):
            cell = results.where(kind=kind, ratio=ratio)
            logits = [spread(cell.values(name), 1) for name in list(SHOWN)[1:]]
            table.rows.append([kind, str(ratio), spread(cell.values(MAIN)), *logits, f"{cell.known('steps')[0]:,}"])
    figure, panels = canvas(list(SHOWN.values()), width=3.4)
    for axes, metric in zip(panels, SHOWN, strict=True):
        for kind, colour in KINDS.items():
            found = results.where(kind=kind)
            places = {r: found.where(ratio=r).values(metric) for r in sorted(found.known("ratio"))}
            places |= {r: whole.values(metric) for r in whole.known("ratio")}
            line(axes, places, kind, colour, factor=100.0 if metric == MAIN else 1.0)
        label(axes, "negatives kept for each positive", "", sorted(results.known("ratio")), legend=axes is panels[0])
    return Findings(str(table), _claims(results), figure)


def _claims(results: Results) -> list[Claim]:
    least = min(results.known("ratio"))

    def by_seed(kind: str, metric: str = MAIN) -> dict[int, float]:
        found = results.where(kind=kind) if kind == ALL else results.where(kind=kind, ratio=least)
        return found.by_seed(metric)

    bias, at = {"margin": 0.1, "unit": ("of bias", 1.0)}, f"at 1:{least}"
    return [
        Claim(f"all over random {at}", differences(by_seed(ALL), by_seed("random"))),
        Claim(f"hard over random {at}", differences(by_seed("hard"), by_seed("random"))),
        Claim(f"random over easy {at}", differences(by_seed("random"), by_seed("easy"))),
        Claim(f"all no better than hard {at}", differences(by_seed(ALL), by_seed("hard")), margin=0.02, kind="no more"),
        Claim(f"matched over hard {at}", differences(by_seed("hard, matched pairs"), by_seed("hard"))),
        Claim(
            f"bias with random over all {at}",
            differences(by_seed("random", "train/logit_bias"), by_seed(ALL, "train/logit_bias")),
            **bias,
        ),
    ]


STUDY = Study(
    "figure6",
    "Figure 6: which negatives count",
    "Section 4.8: leaving out negatives at random hurts, keeping the easiest does not work at all, keeping the hardest "
    "nearly holds, and a little more is gained when pairs are matched by longer training; bias and logits rise as "
    "fewer negatives are left.",
    "SigLiT on stored features, batch 256 (1:255), masks of 1:64 and 1:16, 256 steps; matched pairs up to 3,856. "
    "Claims are those at 1:16; that hard nearly holds means that all negatives are not 2 points better. Logits are "
    "those of the last batch, masked pairs included.",
    cells,
    run,
    findings,
    preparing("english"),
)
