"""Pages of results: one a study with its figure, table and sentence, and one that lists them all.

`python -m benchmarks.paper.pages` brings the published list up to date after a change of docs/paper.md.
"""

import json
import re
import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path

from benchmarks.paper.cells import commits, failures, finished, pending
from benchmarks.paper.statistics import DOES_NOT, HOLDS, UNTOLD, Claim, conclude
from benchmarks.paper.study import Findings, Results, Study, Workspace
from benchmarks.quickstart import circumstances
from siglightning.runtime.files import write_text

RESULTS = Path(__file__).parents[1] / "results" / "paper"
LINES = Path(__file__).parents[2] / "docs" / "paper.md"
LINES_HEAD = "## The paper line by line"
WORDS = {HOLDS: "Holds here", DOES_NOT: "Does not hold here", UNTOLD: "Cannot be told at this scale"}
READING = """\
Every study takes a finding of the SigLIP paper (arXiv:2303.15343) and asks for it at the size of one machine:
embedded drawings, stored features of an EfficientNet-Lite0 and a MiniLM, or pocket towers from scratch. Metrics are
text-to-image recall on drawings of a style that training never saw, in percent, unless said otherwise; equal captions
count as negatives for both losses. Where a page says nothing else: AdamW with betas .9 and .95, weight decay 0.1
times the learning rate, gradients clipped to a norm of 1, 10 % of the steps to warm up and a cosine to zero. t' and b
learn ten times as fast as the rest, for in some hundred steps they go where the paper's go in a hundred thousand.

Claims, sizes and learning rates were chosen on runs with seeds 0 to 2, some of them after a first look at what such
runs gave. They are fixed since, and all numbers here are of other seeds, 3 and up. The pictures are the same, so that
a learning rate may suit them.

Margins, 1 point unless said otherwise, are the smallest differences that matter. That one setting is better does not
hold where the 95 % paired t-interval over seeds lies below the margin; else it holds where the interval lies above
zero. That it is no better is the opposite. That two are alike holds where the interval lies within the margin, and
does not where it lies outside. All else cannot be told, and the page says what could have been. A study holds where
all claims that decide it do, and does not where one does not; claims that stand beside them are marked. Intervals
cover what varies with the seed, not the choice of test pictures. The rule is code:
[statistics.py](../../paper/statistics.py)."""


def study_page(study: Study, workspace: Workspace, command: str) -> str | None:
    """Write the study's page, figure and numbers below the workspace.

    Returns:
        The line of the list, or ``None`` where no cell is done.
    """
    results = finished(study, workspace)
    if not results.cells:
        return None
    findings, folder = study.findings(results), pages_of(workspace)
    folder.mkdir(parents=True, exist_ok=True)
    findings.figure.savefig(folder / f"{study.name}.png")
    write_text(folder / f"{study.name}.md", _text(study, workspace, results, findings, command))
    rows = [{**cell.settings, "seconds": cell.seconds, **cell.values} for cell in results.cells]
    write_text(folder / f"{study.name}.json", json.dumps(_rounded(rows), indent=0) + "\n")
    missing = len(study.cells(workspace)) - len(results.cells)
    done = f"{len(results.cells)}" + (f" ({missing} missing)" if missing else "")
    seconds = sum(cell.seconds for cell in results.cells)
    cells = [f"[{study.title}]({study.name}.md)", WORDS[conclude(findings.claims)], _counted(findings.claims)]
    return f"| {' | '.join(cells)} | {done} | {seconds:,.0f} |"


def index_page(lines: dict[str, str | None], studies: dict[str, Study], left_out: dict[str, str], command: str) -> str:
    """The list of all studies, those that were not run among them."""
    rows = ["| study | in this size | claims | cells | seconds |", "| --- | --- | --- | ---: | ---: |"]
    rows += [lines[name] or f"| {study.title} | not run | - | 0 | 0 |" for name, study in studies.items()]
    out = [f"- {name}: {reason}" for name, reason in left_out.items()]
    remarks = ["Left out:\n\n" + "\n".join(out)] if out else []
    head = "# The findings of the SigLIP paper, in small"
    parts = [head, READING, "\n".join(rows), *remarks, f"`{command}`; {circumstances()}", line_by_line()]
    return "\n\n".join(parts)


def line_by_line() -> str:
    """What becomes of every line of the paper: the tables of docs/paper.md, one heading deeper, links as from here."""
    first, last = "## Where the paper contradicts itself\n", "## Pocket twins\n"
    text = LINES.read_text()
    tables = text[text.index(first) : text.index(last)].replace("## ", "### ").strip()
    tables = re.sub(r"\]\((?!https?:)([\w./-]+)\)", r"](../../../docs/\1)", tables)
    return f"{LINES_HEAD}\n\nFrom [docs/paper.md](../../../docs/paper.md), which says more.\n\n{tables}\n"


def refresh_lines() -> None:
    """Bring the published list up to date with docs/paper.md; needs no results."""
    path = RESULTS / "README.md"
    write_text(path, path.read_text().partition(LINES_HEAD)[0] + line_by_line())


def pages_of(workspace: Workspace) -> Path:
    """Where pages are made, before they are copied to the results."""
    return workspace.root / f"pages-{workspace.scale}"


def require_publishable(studies: Iterable[Study], workspace: Workspace) -> None:
    """What is published was run whole, on one committed tree.

    Raises:
        SystemExit: cells are missing, or were run on a changed tree or on several; the message counts them.
    """
    missing = [f"{study.name} ({gone})" for study in studies if (gone := len(pending(study, workspace, retry=True)))]
    trees = sorted({commit for study in studies for commit in commits(study, workspace)})
    if missing or len(trees) != 1 or trees[0].endswith("+"):
        raise SystemExit(
            f"Not published. Cells missing: {', '.join(missing) or 'none'}; run on {', '.join(trees) or 'no tree'}. "
            "Run all of them on one committed tree, in a new --runs directory."
        )


def publish(workspace: Workspace, names: list[str]) -> None:
    """Copy the pages of some studies, and the list, to the results."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name in names:
        for path in pages_of(workspace).glob(f"{name}.*"):
            shutil.copy(path, RESULTS / path.name)


def _counted(claims: Sequence[Claim]) -> str:
    words = [claim.word for claim in claims if claim.decides]
    counts = {"hold": words.count(HOLDS), "do not": words.count(DOES_NOT), "cannot be told": words.count(UNTOLD)}
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count) or "none"


def _text(study: Study, workspace: Workspace, results: Results, findings: Findings, command: str) -> str:
    beside = {True: "", False: " (decides nothing)"}
    claims = [f"- {claim.word}{beside[claim.decides]}: {claim.sentence()}." for claim in findings.claims]
    failed = [f"- {name}: {error}" for name, error in failures(study, workspace).items()]
    planned, done = len(study.cells(workspace)), len(results.cells)
    seconds, cpu = (sum(getattr(cell, kind) for cell in results.cells) for kind in ("seconds", "cpu_seconds"))
    of_cpu = f" ({cpu:,.0f} s of CPU)" if cpu >= 1 else ""  # what a cell starts in processes of its own is not counted
    tiny = ["**Of the smallest size, which only shows that it works.**"] if workspace.scale == "tiny" else []
    parts = [
        f"# {study.title}",
        *tiny,
        f"The paper. {study.paper}",
        f"Here. {study.here}",
        f"**{WORDS[conclude(findings.claims)]}.**",
        "\n".join(claims),
        f"![{study.title}]({study.name}.png)",
        findings.table,
        f"Mean ± standard deviation over seeds. {done} of {planned} cells, {seconds:,.0f} s{of_cpu}, "
        f"{seconds / done:.1f} s each; at commit {', '.join(commits(study, workspace))}.",
        *(["Cells that failed:\n\n" + "\n".join(failed)] if failed else []),
        f"`{command}`; {circumstances()}",
    ]
    return "\n\n".join(parts) + "\n"


def _rounded(value):
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, dict):
        return {key: _rounded(inner) for key, inner in value.items()}
    return [_rounded(inner) for inner in value] if isinstance(value, list) else value


if __name__ == "__main__":
    refresh_lines()
