"""``siglightning doctor``: what would go wrong, or waste money, in a run that has not begun."""

from siglightning.commands.doctor.case import Case
from siglightning.commands.doctor.checks import CHECKS
from siglightning.commands.doctor.findings import Finding, NamedCheck, Result, examine, worst
from siglightning.commands.doctor.origin import Described, Origin, Preparation

__all__ = [
    "CHECKS",
    "Case",
    "Described",
    "Finding",
    "NamedCheck",
    "Origin",
    "Preparation",
    "Result",
    "examine",
    "worst",
]
