"""How a run ends: exit codes, the error that stands for a non-finite loss, and ``exit.json``."""

import json
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import IntEnum
from pathlib import Path
from typing import Any

from siglightning.runtime.files import write_text


class ExitCode(IntEnum):
    """What the process hands to its parent; the same number stands in ``exit.json``."""

    DONE = 0
    BUG = 1
    BAD_INPUT = 2  # configuration or input; nothing was trained
    NOT_FINITE = 3
    HANG = 4
    PREEMPTED = 75  # EX_TEMPFAIL of sysexits.h: start again and the run goes on
    INTERRUPTED = 130  # 128 + SIGINT, as shells count
    TERMINATED = 143  # 128 + SIGTERM


STATUS = {
    ExitCode.DONE: "done",
    ExitCode.BUG: "failed",
    ExitCode.BAD_INPUT: "bad input",
    ExitCode.NOT_FINITE: "not finite",
    ExitCode.HANG: "hang",
    ExitCode.PREEMPTED: "preempted",
    ExitCode.INTERRUPTED: "interrupted",
    ExitCode.TERMINATED: "terminated",
}


class NotFiniteError(ArithmeticError):
    """A loss, gradient or weight became NaN or infinite, and training cannot go on."""


@dataclass(frozen=True)
class ExitRecord:
    """The content of ``exit.json``.

    Attributes:
        status: the word for ``exit_code``; ``done`` means that the run reached its end.
        exit_code: see :class:`ExitCode`.
        global_step: optimizer steps taken when the run ended.
        seconds: wall-clock time since this process began, in seconds.
        message: empty, or the error in one line.
        finished_at: UTC, ISO 8601.
    """

    status: str
    exit_code: int
    global_step: int
    seconds: float
    message: str = ""
    finished_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))

    @classmethod
    def of(cls, code: ExitCode, global_step: int, seconds: float, message: str = "") -> "ExitRecord":
        """The record of a run that ended with ``code``."""
        return cls(STATUS[code], int(code), global_step, round(seconds, 1), message)

    def write(self, path: Path) -> None:
        """Replace ``path`` atomically with this record."""
        write_text(path, json.dumps(asdict(self), indent=2) + "\n")


def read_exit(path: Path) -> dict[str, Any] | None:
    """The last exit record of a run, or ``None`` when it never ended in an orderly way."""
    try:
        record = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return record if isinstance(record, dict) else None
