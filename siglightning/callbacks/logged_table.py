"""Tables of results, as files for spreadsheets and for loggers that take them."""

import csv
import io
from collections.abc import Sequence
from typing import Any

from lightning.pytorch import Trainer
from torch import Tensor

from siglightning.runtime.dashboard import step_of_loggers

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
        rows: one value a column; pictures are uint8 ``[3, H, W]``, and left out for loggers without
            ``takes_pictures``.
    """
    for logger in trainer.loggers:
        take: Any = getattr(logger, "log_table", None)
        if take is not None:
            shows = getattr(logger, "takes_pictures", False)
            data = [[None if isinstance(cell, Tensor) and not shows else cell for cell in row] for row in rows]
            take(key, columns=list(columns), data=data, step=step_of_loggers(trainer))
