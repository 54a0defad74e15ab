"""``siglightning dashboard --task T --entity E --project P``: a workspace of W&B for the runs of a task."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from siglightning.commands.dashboard.layout import TASKS, sections_of
from siglightning.runtime.files import write_text


def main(arguments: Sequence[str]) -> int:
    """Save a workspace to W&B's server as a new view, or write its definition into a file.

    Returns:
        0; a wrong argument ends the process with 2.

    Raises:
        ValueError: the package wandb-workspaces is missing, nobody is named to save for, or the server does not take
            it.
    """
    options = _parser().parse_args(arguments)
    if options.out is None and not (options.entity and options.project):
        raise ValueError("Expected --entity and --project to save the workspace for, or --out FILE to write it down.")
    from siglightning.commands.dashboard.workspace import as_json, build_workspace, save

    sections = sections_of(options.task, options.sets)
    workspace = build_workspace(f"siglightning: {options.task}", sections, options.entity, options.project)
    if options.out is not None:
        write_text(Path(options.out), as_json(workspace))
        print(f"Written to {options.out}")
    else:
        print(f"Saved as {save(workspace)}")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="siglightning dashboard", description=__doc__, allow_abbrev=False)
    parser.add_argument("--task", required=True, choices=TASKS, help="what the runs do")
    parser.add_argument("--entity", default="", help="user or team on W&B")
    parser.add_argument("--project", default="", help="project of the runs, `siglightning` in logger/wandb")
    parser.add_argument("--sets", nargs="+", default=["test"], metavar="SET", help="names of the test sets, for tables")
    parser.add_argument("--out", help="write the definition as JSON into this file, and save nothing")
    return parser
