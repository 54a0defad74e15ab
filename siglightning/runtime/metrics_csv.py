"""One flat ``metrics.csv`` that survives a resume."""

import csv
import io
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers.logger import Logger
from lightning.pytorch.utilities import rank_zero_only, rank_zero_warn
from torch import Tensor
from typing_extensions import override

from siglightning.runtime.files import write_text

STEP = "step"


class MetricsCsvLogger(Logger):
    """Write logged scalars to one file, one row a step, in the order of steps.

    Lightning's own CSV logger deletes the file of an earlier start, or opens a new numbered directory. Here a
    resumed run goes on in the same file: rows logged after the checkpoint are dropped when the run goes back to
    it, so the file ends up as that of an undisturbed run. Columns appear as metrics do; a late one leaves the
    earlier rows empty. Every row reaches the operating system at once.

    Args:
        path: the file; its directory must exist by the first row.
        resume_step: optimizer steps of the checkpoint that the run resumes from; rows of that step and later ones
            are dropped. ``None``: a new run, an existing file is replaced.
    """

    def __init__(self, path: Path, resume_step: int | None = None) -> None:
        super().__init__()
        self.complete: Callable[[Mapping[str, Any]], dict[str, Any]] = dict  # adds what every row has
        self._path = path
        self._resume_step = resume_step
        self._opened = False
        self._columns: list[str] = [STEP]
        self._last: dict[str, str] = {}
        self._waiting: dict[str, dict[str, str]] = {}  # rows by step that the disk has not taken
        self._last_start = 0  # byte offset of the last row
        self._kept: dict[str, frozenset[str]] = {}  # columns that an earlier start has filled, by step

    @property
    @override
    def name(self) -> str:
        return ""

    @property
    @override
    def version(self) -> str:
        return ""

    @property
    @override
    def save_dir(self) -> str:
        return str(self._path.parent)

    @override
    @rank_zero_only
    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """Nothing to do: ``config.yaml`` lies beside the file."""

    @override
    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Add values to the row of ``step``; without a step, to the last row.

        A disk that does not take them is warned of; they are kept, and written as soon as it does.
        """
        key = str(int(self._newest() if step is None else step))
        cells = {name: _text(value) for name, value in self.complete(metrics).items()}
        was_waiting = bool(self._waiting)
        try:
            if not was_waiting:
                self._open()
                self._add(key, cells)
        except OSError as error:
            rank_zero_warn(
                f"{self._path.name} was not written: {error}. Its rows are kept, and written when the disk takes them."
            )
            self._wait(key, self._last | cells if self._last.get(STEP) == key else cells)
        if was_waiting:
            self._wait(key, cells)
            self._write_waiting()

    @override
    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Write what a full disk has not taken so far, if it does now."""
        if self._waiting:
            self._write_waiting()

    def _newest(self) -> int:
        return max(int(key) for key in (self._last.get(STEP, "0"), *self._waiting))

    def _wait(self, key: str, cells: dict[str, str]) -> None:
        self._waiting[key] = self._waiting.get(key, {}) | cells

    def _write_waiting(self) -> None:
        with suppress(OSError):  # as before: it has been warned of
            self._open()
            rows = self._rows()
            for key, cells in self._waiting.items():
                self._columns += [name for name in cells if name not in self._columns]
                rows = _merged(rows, key, cells)
            self._rewrite(rows)
            self._waiting.clear()

    def _add(self, key: str, cells: dict[str, str]) -> None:
        new = [name for name in cells if name not in self._columns]
        self._columns += new
        if int(key) < int(self._last.get(STEP, key)):
            self._rewrite(_merged(self._rows(), key, cells))
            return
        if key == self._last.get(STEP):
            self._last |= cells
        else:
            self._last = {STEP: key, **cells}
            self._last_start = self._path.stat().st_size
        if new:
            self._rewrite(_merged(self._rows(), key, self._last))
        else:
            self._write_last()

    def kept_columns(self, step: int) -> frozenset[str]:
        """Names of what an earlier start has logged for a step before the checkpoint."""
        with suppress(OSError):  # it is warned of when a row is written
            self._open()
        return self._kept.get(str(step), frozenset())

    def _open(self) -> None:
        """Bring an earlier start's file back to the state at the checkpoint, once."""
        if self._opened:
            return
        rows = []
        if self._resume_step is not None and self._path.exists():
            rows = [row for row in self._rows() if int(row[STEP]) < self._resume_step]
            self._kept = {row[STEP]: frozenset(name for name, cell in row.items() if cell) for row in rows[-1:]}
            filled = {name for row in rows for name, cell in row.items() if cell}
            self._columns = [STEP, *(name for name in (rows[0] if rows else {}) if name in filled - {STEP})]
        self._rewrite(rows)
        self._opened = True

    def _rows(self) -> list[dict[str, str]]:
        """All rows in the file; one cut short by a crash is left out."""
        with self._path.open(newline="") as file:
            rows = list(csv.DictReader(file, restval=None))
        return [row for row in rows if row[STEP].isdigit() and None not in row.values()]

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        head = self._format([dict(zip(self._columns, self._columns, strict=True)), *rows[:-1]])
        tail = self._format(rows[-1:])
        write_text(self._path, head + tail)
        self._last = dict(rows[-1]) if rows else {}
        self._last_start = len(head.encode())

    def _write_last(self) -> None:
        left = self._format([self._last]).encode()
        with self._path.open("r+b", buffering=0) as file:
            try:
                file.seek(self._last_start)
                while left:
                    left = left[file.write(left) :]
                file.truncate()
            except OSError:
                file.truncate(self._last_start)  # better no row than half a number
                raise

    def _format(self, rows: list[dict[str, str]]) -> str:
        text = io.StringIO()
        writer = csv.DictWriter(text, self._columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writerows(rows)
        return text.getvalue()


def _text(value: object) -> str:
    return repr(value.item()) if isinstance(value, Tensor) else str(value)


def _merged(rows: list[dict[str, str]], key: str, cells: dict[str, str]) -> list[dict[str, str]]:
    """``rows`` with ``cells`` added to the row of step ``key``, which is made where it is missing."""
    for row in rows:
        if row[STEP] == key:
            row |= cells
            return rows
    return sorted([*rows, {STEP: key, **cells}], key=lambda row: int(row[STEP]))
