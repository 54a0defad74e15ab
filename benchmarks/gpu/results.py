"""The file of results: runs on one machine, added to each other cell by cell."""

import json
from pathlib import Path
from typing import Any

from siglightning.runtime.files import write_text

ALIKE = ("kind", "device", "driver", "versions")  # what must agree between runs in one file


def load(path: Path) -> dict[str, Any]:
    """The results so far; nothing where there is no file."""
    return json.loads(path.read_text()) if path.exists() else {"runs": [], "cells": []}


def begin(results: dict[str, Any], description: dict[str, Any]) -> dict[str, Any]:
    """Add a run to the results; its cells refer to it by its number.

    Raises:
        ValueError: they are of another device, driver or version, with which its figures cannot stand together.
    """
    for earlier in results["runs"]:
        for key in ALIKE:
            if earlier[key] != description[key]:
                raise ValueError(
                    f"Expected the {key} of the results so far, {earlier[key]}, got {description[key]}. Figures of "
                    "both in one table would be compared; write to another folder, or remove the old file."
                )
    return results | {"runs": [*results["runs"], description]}


def add_cell(results: dict[str, Any], cell: dict[str, Any], key: tuple[str, ...]) -> None:
    """Add a cell of the last run, in the place of an earlier one with the same values of ``key``."""
    cell = {"run": len(results["runs"]) - 1, **cell}
    others = [old for old in results["cells"] if not _same(old, cell, key)]
    results["cells"] = sorted([*others, cell], key=lambda one: [one[name] for name in key])
    results["skipped"] = [old for old in results.get("skipped", []) if not _same(old, cell, key)]


def skip(results: dict[str, Any], cell: dict[str, Any], reason: str, key: tuple[str, ...]) -> None:
    """Remember that a size was not measured, unless it is there from an earlier run."""
    same = [one for one in [*results["cells"], *results.setdefault("skipped", [])] if _same(one, cell, key)]
    if not same:
        results["skipped"].append(cell | {"left_out": reason})


def save(results: dict[str, Any], path: Path) -> None:
    """Write the results; done after each cell, so that a run that is cut off leaves what it has found."""
    write_text(path, json.dumps(results, indent=1) + "\n")


def footer(results: dict[str, Any]) -> str:
    """How each run was started, on what, with what, and when."""
    lines = []
    for number, run in enumerate(results["runs"]):
        names = ("siglightning", "torch", "triton", "lightning", "open_clip_torch", "timm", "siglip-kernel")
        versions = ", ".join(f"{name} {run['versions'][name]}" for name in names if name in run["versions"])
        commit = (
            f"commit {run['commit'][:7]}{' with changes' if run['dirty'] else ''}" if run["commit"] else "no commit"
        )
        place = f"{run['device']}, driver {run['driver']}, CUDA {run['cuda']}" if run["kind"] == "cuda" else run["cpu"]
        lines.append(f"{number + 1}. `{run['command']}`; {place}; {versions}; {commit}; {run['date']}")
    return "\n".join(lines)


def _same(one: dict[str, Any], other: dict[str, Any], key: tuple[str, ...]) -> bool:
    return all(one[name] == other[name] for name in key)
