"""What a check says, and the round of all checks: none of them hides another."""

import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Literal, TypeVar

import torch

Level = Literal["ok", "warning", "error"]
LEVELS: tuple[Level, ...] = ("ok", "warning", "error")
Case = TypeVar("Case")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        level: ``ok``; ``warning``, which a run survives; ``error``, which it does not, or not with sense.
        text: what was found, in a sentence.
        remedy: what to do, in a line; every warning and error has one.
        lines: more of it, such as a table.
        values: the same for programs, JSON values.
    """

    level: Level
    text: str
    remedy: str = ""
    lines: Sequence[str] = ()
    values: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.level != "ok" and not self.remedy:
            raise ValueError(f"Expected a remedy with a finding of the level {self.level!r}, got none: {self.text}")


class NotApplicableError(Exception):
    """A check has nothing to look at in this run; the message says why."""


@dataclass(frozen=True)
class Result:
    """What one check said.

    Attributes:
        name: of the check.
        findings: in their order.
        seconds: that it took.
        skipped: why it did not look; empty where it did.
    """

    name: str
    findings: Sequence[Finding]
    seconds: float
    skipped: str = ""

    @property
    def level(self) -> Level:
        """The worst of its findings."""
        return worst(finding.level for finding in self.findings)


Check = Callable[[Case], Iterator[Finding]]


@dataclass(frozen=True)
class NamedCheck(Generic[Case]):
    """A check and what it is called."""

    name: str
    run: Check[Case]


def examine(case: Case, checks: Sequence[NamedCheck[Case]], *, debug: bool = False) -> Iterator[Result]:
    """Run one check after the other.

    A check that fails is an error of its own, beside what it had found until then. Where several stumble over the same
    thing, only the first reports it.

    Args:
        case: what is examined.
        checks: in their order.
        debug: show the traceback of a check that fails.

    Yields:
        A result for each check, as soon as it is there.
    """
    reported: dict[str, str] = {}
    for check in checks:
        start, findings, skipped = time.monotonic(), list[Finding](), ""
        try:
            findings += check.run(case)
        except NotApplicableError as reason:
            skipped = str(reason)
        except Exception as error:
            if debug:
                traceback.print_exception(error)
            message = _message(error)
            if message in reported:
                skipped = f"stumbles over the same as {reported[message]}"
            else:
                reported[message] = check.name
                findings.append(Finding("error", message, _remedy(error)))
        yield Result(check.name, findings, time.monotonic() - start, skipped)


def worst(levels: Iterator[Level]) -> Level:
    """The worst of some levels; ``ok`` for none."""
    return max(levels, key=LEVELS.index, default="ok")


def _message(error: Exception) -> str:
    text = " ".join(str(error).split()) or "no message"
    return text if isinstance(error, ValueError) else f"{type(error).__name__}: {text}"


def _remedy(error: Exception) -> str:
    """Our own errors say it themselves; others come from where nobody has thought of them."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return "Take a smaller model, or a device with more memory; see what `siglightning plan` reckons."
    return "As it says." if isinstance(error, ValueError) else "Run with --debug for the traceback."
