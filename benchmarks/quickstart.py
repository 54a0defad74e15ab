"""The quickstart with three seeds: retrieval on a style never seen, wall time, memory of all processes.

    python -m benchmarks.quickstart --runs DIR            # runs go to DIR/seed-0 ...
    python -m benchmarks.quickstart --runs DIR --write    # and the table to benchmarks/results/quickstart.md

The split of concepts and styles is the same for every seed; weights, order, captions and augmentation differ. Wall time
is that of the whole command, start of Python and evaluation included. Memory is the largest sum of the proportional set
sizes (PSS) of the command and its children, looked at once a second.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

from siglightning.callbacks.memory import process_tree_pss_bytes
from siglightning.runtime.environment import describe_environment

RESULTS = Path(__file__).parent / "results" / "quickstart.md"
METRICS = (
    ("seen_concepts", "t2i_recall@1"),
    ("seen_concepts", "t2i_recall@5"),
    ("unseen_concepts", "t2i_recall@1"),
    ("unseen_concepts", "t2i_recall@5"),
)


QUICKSTART = ("--config", "quickstart")


def run_seed(seed: int, run_dir: Path, arguments: Sequence[str] = QUICKSTART) -> dict[str, float]:
    """Train and test once; returns the metrics, `seconds` and `pss_mib`."""
    seeds = [f"--seed_everything={seed}", f"--data.init_args.seed={seed}", f"--model.init_args.seed={seed}"]
    seconds, peak = timed(["fit", *arguments, "--run_dir", str(run_dir), *seeds])
    return {**read_metrics(run_dir), "seconds": seconds, "pss_mib": peak}


def timed(arguments: Sequence[str]) -> tuple[float, float]:
    """Run one command of siglightning; its wall time in seconds and its peak memory in MiB."""
    command = [sys.executable, "-m", "siglightning", *arguments]
    start, peak = time.monotonic(), 0.0
    process = subprocess.Popen(command)
    while process.poll() is None:
        peak = max(peak, (process_tree_pss_bytes(process.pid) or 0) / 2**20)
        time.sleep(1)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with exit code {process.returncode}")
    return time.monotonic() - start, peak


def read_metrics(run_dir: Path) -> dict[str, float]:
    """The four metrics of a run, and the size of each test set, from its `summary.json`."""
    summary = json.loads((run_dir / "summary.json").read_text())
    found = {}
    for test_set, metric in METRICS:
        row = summary[test_set][metric]
        found |= {f"{test_set} {metric}": row["value"], f"{test_set} {metric} chance": row["chance"]}
        found[f"{test_set} n"] = row["count"]
    return found


def report(runs: list[dict[str, float]]) -> str:
    """A Markdown table: one column a seed, the median, chance."""
    header = " | ".join(f"seed {seed}" for seed in range(len(runs)))
    lines = [f"| | {header} | median | chance |", "| --- |" + " ---: |" * (len(runs) + 2)]
    for test_set, metric in METRICS:
        key = f"{test_set} {metric}"
        values = [run[key] for run in runs]
        cells = " | ".join(f"{value:.3f}" for value in values)
        name = f"{test_set} ({runs[0][f'{test_set} n']:,.0f}) {metric}"
        lines.append(f"| {name} | {cells} | **{statistics.median(values):.3f}** | {runs[0][f'{key} chance']:.4f} |")
    for key, unit in (("seconds", "s"), ("pss_mib", "MiB")):
        cells = " | ".join(f"{run[key]:.0f}" for run in runs)
        lines.append(f"| {key} | {cells} | **{statistics.median(run[key] for run in runs):.0f}** {unit} | |")
    return "\n".join(lines)


def circumstances() -> str:
    """Versions, hardware and date."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("siglightning", "torch", "lightning"))
    hardware = describe_environment(1, [])["hardware"]
    return f"{versions}; {hardware['cpu']}, {hardware['usable_cores']} cores, {time.strftime('%Y-%m-%d')}"


def main() -> None:
    """Run the seeds one after the other, print the table, and write it when asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, required=True, help="new directory for the runs")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--write", action="store_true")
    args = parser.parse_args()
    table = report([run_seed(seed, args.runs / f"seed-{seed}") for seed in range(args.seeds)])
    text = f"{table}\n\n`python -m benchmarks.quickstart --seeds {args.seeds}`; {circumstances()}\n"
    print(text)
    if args.write:
        RESULTS.parent.mkdir(parents=True, exist_ok=True)
        RESULTS.write_text(text)


if __name__ == "__main__":
    main()
