"""The version of what a checkpoint file holds, and how older ones become the newest."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

KEY = "siglightning_format"

Content = dict[str, Any]


def _count_skipped_steps(content: Content) -> Content:
    """Format 1 counts the steps that were left out because of NaN; before it, such a step ended the run."""
    return {"skipped_steps": 0} | content


# Position n makes format n + 1 of format n; files of before there were formats are 0. Never changed, only added to.
MIGRATIONS: tuple[Callable[[Content], Content], ...] = (_count_skipped_steps,)
FORMAT = len(MIGRATIONS)


def migrated(content: Content, path: Path) -> Content:
    """The content of a file as this release writes it.

    Args:
        content: as it was read.
        path: for the message.

    Raises:
        ValueError: a later release wrote it.
    """
    version = content.get(KEY, 0)
    if not isinstance(version, int) or not 0 <= version <= FORMAT:
        raise ValueError(
            f"{path} has format {version!r}; this release reads formats 0 to {FORMAT}. Install the release that wrote "
            "it, or a later one."
        )
    for migrate in MIGRATIONS[version:]:
        content = migrate(content)
    return content | {KEY: FORMAT}
