"""Findings as text for the terminal, as they come, and as plain values for a file."""

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from siglightning.commands.doctor.case import Case
from siglightning.commands.doctor.findings import Level, Result, worst

_INDENT = " " * 21


class Report:
    """Takes results one by one.

    Args:
        case: what is examined.
        start_s: seconds that it took to set the run up.
    """

    def __init__(self, case: Case, start_s: float) -> None:
        self.case, self.start_s = case, start_s
        self.results: list[Result] = []

    @property
    def level(self) -> Level:
        """The worst of all findings."""
        return worst(result.level for result in self.results)

    def head(self) -> str:
        """What is examined."""
        case = self.case
        processes = f"{case.world_size} process{'es' if case.world_size > 1 else ''}"
        return (
            f"{type(case.task).__name__} on {type(case.datamodule).__name__}, {processes} on {case.device.type}, "
            f"{case.origin.told()}; set up in {self.start_s:.1f} s"
        )

    def add(self, result: Result) -> str:
        """Take a result; its lines, with a line break at the end."""
        self.results.append(result)
        return "".join(f"{line}\n" for line in _lines(result))

    def foot(self) -> str:
        """How many of each level, and the time."""
        counts = self._counts()
        told = [f"{counts[level]} {level}{'s' if counts[level] != 1 else ''}" for level in ("error", "warning")]
        seconds = sum(result.seconds for result in self.results)
        skipped = sum(1 for result in self.results if result.skipped)
        not_looked = f", {skipped} without anything to look at" if skipped else ""
        return f"{', '.join(told)} in {len(self.results)} checks{not_looked}; {seconds:.1f} s"

    def values(self) -> dict[str, Any]:
        """JSON values: ``level``, counts of levels, seconds, and each check with its findings."""
        counts = self._counts()
        return {
            "level": self.level,
            "errors": counts["error"],
            "warnings": counts["warning"],
            "set_up_s": round(self.start_s, 2),
            "run_dir": str(self.case.run_dir),
            "checkpoint": self.case.origin.checkpoint,
            "checkpoint_kind": self.case.origin.kind if self.case.origin.checkpoint else None,
            "checkpoint_step": self.case.origin.step,
            "processes": self.case.world_size,
            "device": self.case.device.type,
            "checks": [_values(result) for result in self.results],
        }

    def _counts(self) -> Counter[str]:
        return Counter(finding.level for result in self.results for finding in result.findings)


def _lines(result: Result) -> Iterator[str]:
    name, seconds = f"{result.name:<11}", f"{result.seconds:.1f} s"
    if result.skipped:
        yield f"{'-':<9}{name} {result.skipped}"
    for number, finding in enumerate(result.findings):
        time = f" ({seconds})" if number == 0 and result.seconds >= 0.05 else ""
        yield f"{finding.level:<9}{name if number == 0 else ' ' * 11} {finding.text}{time}"
        yield from (f"{_INDENT}  {line}" for line in finding.lines)
        if finding.level != "ok":
            yield f"{_INDENT}-> {finding.remedy}"


def _values(result: Result) -> dict[str, Any]:
    return {
        "check": result.name,
        "level": result.level,
        "seconds": round(result.seconds, 3),
        "skipped": result.skipped or None,
        "findings": [_plain(asdict(finding)) for finding in result.findings],
    }


def _plain(value: Any) -> Any:
    """With ``null`` for numbers that JSON has no word for."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
