"""What a study is: cells to run, each small and by itself, and what is made of their values."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from matplotlib.figure import Figure

from benchmarks.paper.statistics import Claim

Settings = dict[str, Any]
Values = dict[str, Any]
Scale = Literal["full", "tiny"]
FIRST_SEED = 3  # claims, margins, sizes and learning rates were chosen on runs of seeds 0 to 2, which do not count


@dataclass(frozen=True)
class Workspace:
    """Where a study runs, and how large.

    Attributes:
        root: features and cells lie below it.
        scale: ``tiny`` shows that everything works and tells nothing else.
        seeds: how many.
    """

    root: Path
    scale: Scale = "full"
    seeds: int = 3

    def pick(self, full: Any, tiny: Any) -> Any:
        """What belongs to the scale."""
        return full if self.scale == "full" else tiny

    def each_seed(self, settings: Sequence[Settings]) -> list[Settings]:
        """Every setting with every seed, seeds outermost: what is stopped early has whole seeds."""
        return [{**one, "seed": seed} for seed in range(FIRST_SEED, FIRST_SEED + self.seeds) for one in settings]


@dataclass(frozen=True)
class Result:
    """A finished cell: its settings, the seed among them, and what it measured."""

    settings: Settings
    values: Values
    seconds: float
    cpu_seconds: float


@dataclass(frozen=True)
class Findings:
    """What a study makes of its results.

    Attributes:
        table: Markdown, with mean and spread.
        claims: what the paper says, compared.
        figure: to be saved as PNG.
    """

    table: str
    claims: Sequence[Claim]
    figure: Figure


def _nothing(workspace: Workspace) -> None:
    """No preparation."""


@dataclass(frozen=True)
class Study:
    """A figure or table of the paper in small.

    Attributes:
        name: ``figure2``; also of the files.
        title: of the page.
        paper: what the paper says, and where.
        here: what is done here, and what differs.
        cells: the settings of all runs.
        run: one cell; must depend on the settings and the workspace only.
        findings: of the results that there are, perhaps not all.
        prepare: what cells share, done once before them.
        timed: whether cells measure time or memory, and therefore run one at a time.
    """

    name: str
    title: str
    paper: str
    here: str
    cells: Callable[[Workspace], list[Settings]]
    run: Callable[[Settings, Workspace], Values]
    findings: Callable[["Results"], Findings]
    prepare: Callable[[Workspace], None] = _nothing
    timed: bool = False


def cell_name(settings: Settings, scale: Scale) -> str:
    """A readable name, and a digest that changes with any setting."""
    digest = hashlib.sha256(json.dumps([settings, scale], sort_keys=True).encode()).hexdigest()[:8]
    words = "-".join(str(value) for value in settings.values() if isinstance(value, str | int | float))
    return f"{''.join(c if c.isalnum() or c in '.-' else '_' for c in words)[:60]}-{digest}"


@dataclass(frozen=True)
class Results:
    """The finished cells of a study, to be asked by settings.

    Attributes:
        cells: all of them.
        scale: at which they ran.
    """

    cells: Sequence[Result]
    scale: Scale = "full"

    def where(self, **settings: Any) -> "Results":
        """Those that have these settings."""
        wanted = settings.items()
        return Results([cell for cell in self.cells if all(cell.settings.get(k) == v for k, v in wanted)], self.scale)

    def by_seed(self, metric: str) -> dict[int, float]:
        """The metric of one setting, by seed.

        Raises:
            ValueError: cells of several settings.
        """
        found = {cell.settings["seed"]: cell.values[metric] for cell in self.cells if metric in cell.values}
        if len(found) < sum(metric in cell.values for cell in self.cells):
            raise ValueError("Expected cells of one setting, got several with the same seed. Ask with `where` first.")
        return found

    def values(self, metric: str) -> list[float]:
        """The metric of one setting, in the order of seeds."""
        return [value for _, value in sorted(self.by_seed(metric).items())]

    def known(self, setting: str) -> list[Any]:
        """What values a setting has, in the order of the cells."""
        return list(dict.fromkeys(cell.settings[setting] for cell in self.cells if setting in cell.settings))


@dataclass
class Table:
    """Rows of Markdown.

    Attributes:
        header: titles of the columns; the first is aligned to the left, the others to the right.
        rows: cells.
    """

    header: Sequence[str]
    rows: list[Sequence[str]] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [self.header, ["---", *["---:"] * (len(self.header) - 1)], *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)
