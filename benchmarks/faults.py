"""What happens to a run when something fails: the table of all fault tests, from what they observed.

    python -m benchmarks.faults               # prints it
    python -m benchmarks.faults --write       # and writes benchmarks/results/faults.md

Runs every test that writes down what it saw (fixture ``observe`` of tests/conftest.py), slow ones included, one after
the other. A test that fails, or is skipped on this machine, is told above the table.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from siglightning.runtime.environment import describe_environment

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "faults.md"
HEAD = """# Faults

What a run does when something fails, as its tests observed it: real processes on gloo, real files and signals. Seconds
are those from the fault until the run had ended or was going on again; for what is refused, and for runs that go on
elsewhere, those of the whole command, of which starting a process takes some. All processes shared {cores} cores, and
time-outs are shorter here than the defaults.

`{command}`, {date}, commit {commit}, {cpu}, {versions}.

"""


def observing_files() -> list[str]:
    """Test files with a test that writes down what it saw."""
    found = (path for path in (ROOT / "tests").rglob("test_*.py") if re.search(r"\bobserve\(", path.read_text()))
    return sorted(str(path.relative_to(ROOT)) for path in found)


def run_tests(files: list[str], target: Path) -> tuple[list[dict[str, str | float | None]], list[str], int]:
    """Rows of the table, what pytest says of tests that did not pass, and its exit code."""
    options = ["-n", "0", "-q", "-rfEs", "-m", "slow or not slow"]
    command = [sys.executable, "-m", "pytest", *options, "--faults-to", str(target), *files]
    run = subprocess.run(command, cwd=ROOT, env=os.environ, stdout=subprocess.PIPE, text=True, check=False)
    print(run.stdout[-3000:])
    rows = [json.loads(line) for line in target.read_text().splitlines()] if target.exists() else []
    not_passed = [line for line in run.stdout.splitlines() if line.startswith(("FAILED", "ERROR", "SKIPPED"))]
    return rows, not_passed, run.returncode


def table(rows: list[dict[str, str | float | None]]) -> str:
    """One row a fault."""
    lines = ["| fault | expected | observed | s | test |", "| --- | --- | --- | ---: | --- |"]
    for row in rows:
        seconds = row["seconds"]
        cells = [str(row[name]).replace("|", "\\|") for name in ("fault", "expected", "observed")]
        test = str(row["test"]).partition("[")[0].removeprefix("tests/")
        lines.append(f"| {' | '.join(cells)} | {'' if seconds is None else f'{seconds:.1f}'} | `{test}` |")
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/faults.md")
    parser.add_argument("--rows", type=Path, help="keep here what tests write down, as they end")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows, not_passed, code = run_tests(observing_files(), args.rows or Path(folder, "rows.jsonl"))
    environment = describe_environment(1, [])
    versions = environment["versions"]
    head = HEAD.format(
        cores=environment["hardware"]["usable_cores"],
        command="python -m benchmarks.faults --write",
        date=environment["started_at"][:10],
        commit=(environment["git"] or {}).get("commit", "unknown")[:7],
        cpu=environment["hardware"]["cpu"],
        versions=", ".join(f"{name} {versions[name]}" for name in ("torch", "lightning")),
    )
    told = "".join(f"- {line}\n" for line in not_passed)
    page = head + (f"Not passed, or not run on this machine:\n\n{told}\n" if told else "") + table(rows)
    print(page)
    if args.write:
        RESULTS.write_text(page)
    sys.exit(code)


if __name__ == "__main__":
    main()
