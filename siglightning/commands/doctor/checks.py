"""All checks, in the order in which they are shown: what is learnt from, what is learnt, what it costs."""

from siglightning.commands.doctor.case import Case
from siglightning.commands.doctor.cost import check_disk, check_memory, check_precision, check_workers
from siglightning.commands.doctor.findings import NamedCheck
from siglightning.commands.doctor.look import count_classes, cut_captions, show_sample
from siglightning.commands.doctor.objective import begin, count_negatives
from siglightning.commands.doctor.pictures import find_duplicates, read_pictures
from siglightning.commands.doctor.pixels import check_pixels
from siglightning.commands.doctor.ring import check_ring
from siglightning.commands.doctor.settings import check_groups, check_length
from siglightning.commands.doctor.speed import check_loader
from siglightning.commands.doctor.tokens import check_tokens

CHECKS: tuple[NamedCheck[Case], ...] = (
    NamedCheck("sample", show_sample),
    NamedCheck("pictures", read_pictures),
    NamedCheck("duplicates", find_duplicates),
    NamedCheck("classes", count_classes),
    NamedCheck("pixels", check_pixels),
    NamedCheck("captions", cut_captions),
    NamedCheck("tokens", check_tokens),
    NamedCheck("negatives", count_negatives),
    NamedCheck("step 0", begin),
    NamedCheck("groups", check_groups),
    NamedCheck("length", check_length),
    NamedCheck("memory", check_memory),
    NamedCheck("disk", check_disk),
    NamedCheck("precision", check_precision),
    NamedCheck("workers", check_workers),
    NamedCheck("loader", check_loader),
    NamedCheck("ring", check_ring),
)
