"""The findings of the SigLIP paper, each tested at the size of one machine.

    python -m benchmarks.paper --runs DIR                      # all studies; a second start goes on where it stopped
    python -m benchmarks.paper --runs DIR --only figure2 table4
    python -m benchmarks.paper --runs DIR --write              # and the pages to benchmarks/results/paper/

Needs the extra `pretrained-demo`. Features, cells and pages lie below DIR; a finished cell is not run again, one that
crashed says so on its page and is tried again with --retry.
"""

import argparse
import os
from pathlib import Path

from benchmarks.paper.cells import pending, run_cells
from benchmarks.paper.pages import LINES_HEAD, index_page, pages_of, publish, require_publishable, study_page
from benchmarks.paper.studies import LEFT_OUT, STUDIES
from benchmarks.paper.study import Workspace
from siglightning.runtime.files import write_text


def main() -> None:
    """Run what is pending, make the pages, and publish them when asked."""
    args = _arguments()
    workspace = Workspace(args.runs, args.scale, args.seeds)
    names = args.only or list(STUDIES)
    if args.list:
        for name in names:
            total = len(STUDIES[name].cells(workspace))
            print(f"{name}: {len(pending(STUDIES[name], workspace, args.retry))} of {total} cells to be run")
        return
    for name in names:
        run_cells(STUDIES[name], workspace, args.jobs, args.retry)
    command = f"python -m benchmarks.paper --scale {args.scale} --seeds {args.seeds} --jobs {args.jobs}"
    lines = {name: study_page(study, workspace, f"{command} --only {name}") for name, study in STUDIES.items()}
    index = index_page(lines, STUDIES, LEFT_OUT, command)
    pages_of(workspace).mkdir(parents=True, exist_ok=True)  # nothing is there where every cell failed
    write_text(pages_of(workspace) / "README.md", index)
    print(index.partition(LINES_HEAD)[0])
    if args.write:
        require_publishable(STUDIES.values(), workspace)
        publish(workspace, [*STUDIES, "README"])


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--runs", type=Path, required=True, help="directory for features, cells and pages")
    parser.add_argument("--only", nargs="+", choices=list(STUDIES), help="studies; all of them unless given")
    parser.add_argument("--scale", choices=["full", "tiny"], default="full", help="tiny: shows only that it works")
    parser.add_argument("--seeds", type=int, default=3)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument("--jobs", type=int, default=cores, help="cells at a time, of one thread each")
    parser.add_argument("--retry", action="store_true", help="run cells again that crashed")
    parser.add_argument("--list", action="store_true", help="say what is to be run, and end")
    parser.add_argument("--write", action="store_true", help="publish the pages in benchmarks/results/paper")
    args = parser.parse_args()
    if args.seeds < 1 or args.jobs < 1:
        parser.error(f"--seeds and --jobs must be at least 1, got {args.seeds} and {args.jobs}")
    if args.write and args.scale != "full":
        parser.error("--write is for --scale full: tiny runs are no results")
    if args.write and args.seeds < 3:
        parser.error(f"--write is for three seeds or more, got {args.seeds}")
    return args


if __name__ == "__main__":
    main()
