"""Samples that cannot be used: counted by reason, written down, replaced, and too many of them an error."""

import json
import os
from collections import Counter
from pathlib import Path

from siglightning.data.images import BadSampleError
from siglightning.runtime.files import spared

LOG_NAME = "bad_samples.jsonl"
ENOUGH = 200  # samples, before a share says anything


class BadSampleLog:
    """What one loading process has met.

    Each process counts by itself, since each sees a random part of the data; all append to one file, a line at a
    time, which POSIX keeps whole.

    Args:
        path: JSON lines; ``None`` counts without writing.
        max_fraction: of samples that may be bad.
    """

    def __init__(self, path: Path | None, max_fraction: float) -> None:
        if not 0 <= max_fraction <= 1:
            raise ValueError(f"`max_bad_fraction` must lie between 0 and 1, got {max_fraction}.")
        self.path, self.max_fraction = path, max_fraction
        self.reasons: Counter[str] = Counter()
        self._places: Counter[str] = Counter()
        self.seen = 0
        self._written: set[str] = set()

    @property
    def keys(self) -> list[str]:
        """Of the samples that could not be used."""
        return sorted(self._written)

    def good(self) -> None:
        """Count a sample that could be used."""
        self.seen += 1

    def bad(self, key: str, error: BadSampleError) -> None:
        """Count one that could not, and write it down the first time.

        Raises:
            ValueError: there are too many; the message names the reasons, some of the samples, and the folders or
                tars that hold most of them: what stands before the last ``/`` of their keys.
        """
        self.seen += 1
        self.reasons[error.reason] += 1
        self._places[key.rpartition("/")[0]] += 1
        if key not in self._written:
            self._written.add(key)
            with spared(f"a line of {LOG_NAME}"):
                self._write({"key": key, "reason": error.reason, "detail": str(error)})
        self._check()

    def _check(self) -> None:
        bad = self.reasons.total()
        if bad <= self.max_fraction * max(self.seen, ENOUGH):
            return
        reasons = ", ".join(f"{count} {reason}" for reason, count in self.reasons.most_common())
        worst = [f"{place} ({count})" for place, count in self._places.most_common(5) if place]
        where = f" Most of them lie in {', '.join(worst)}." if worst else ""
        where += f" All of them: {self.path}." if self.path is not None else ""
        raise ValueError(
            f"Expected at most {self.max_fraction:.1%} bad samples, got {bad} of {self.seen} ({reasons}), among them "
            f"{', '.join(sorted(self._written)[:5])}.{where} Repair or remove them, or raise "
            "`data.init_args.max_bad_fraction`."
        )

    def _write(self, line: dict[str, str]) -> None:
        if self.path is None:
            return
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        try:
            os.write(descriptor, json.dumps(line, ensure_ascii=False).encode() + b"\n")
        finally:
            os.close(descriptor)
