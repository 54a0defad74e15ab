"""``siglightning doctor``: what would go wrong, or waste money, in a run that has not begun."""

from siglightning.commands.doctor.case import Case, Origin
from siglightning.commands.doctor.checks import CHECKS
from siglightning.commands.doctor.findings import Finding, NamedCheck, Result, examine, worst

__all__ = ["CHECKS", "Case", "Finding", "NamedCheck", "Origin", "Result", "examine", "worst"]
