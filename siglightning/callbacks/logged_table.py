"""Tables of results, as files for spreadsheets and for loggers that take them."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer

Rows = Sequence[Sequence[Any]]


def csv_text(columns: Sequence[str], rows: Rows) -> str:
    """A line of names and the rows, as RFC 4180 wants them; ``None`` is an empty cell."""
    file = io.StringIO(newline="")
    writer = csv.writer(file)
    writer.writerow(columns)
    writer.writerows(rows)
    return file.getvalue()


def log_table(trainer: Trainer, key: str, columns: Sequence[str], rows: Rows) -> None:
    """Hand a table to the loggers that take one, as Lightning's for W&B does.

    Args:
        trainer: whose loggers.
        key: name of the table.
        columns: their names.
        rows: one value a column.
    """
    for logger in trainer.loggers:
        take: Any = getattr(logger, "log_table", None)
        if take is not None:
            take(key, columns=list(columns), data=[list(row) for row in rows], step=trainer.global_step)
