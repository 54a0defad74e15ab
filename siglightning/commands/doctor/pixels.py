"""Whether pictures reach the image tower as those that its weights were trained with."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict

from siglightning.batch import Resizing
from siglightning.commands.doctor.case import Case
from siglightning.commands.doctor.findings import Finding, NotApplicableError
from siglightning.commands.doctor.origin import Origin, Preparation
from siglightning.models import ImageEncoder

_ALIKE = 2e-3  # of mean and deviation: half a grey level of 255; constants are printed with three digits here and there


def check_pixels(case: Case) -> Iterator[Finding]:
    """Compare size, resizing, mean and deviation with those of the checkpoint."""
    if "image" not in case.data.example:
        raise NotApplicableError("the data hold stored features and no pictures")
    network = case.base_task.network
    assert isinstance(network, ImageEncoder)  # `base_task` has asked
    mine = Preparation.of(network.image_tower)
    yield Finding("ok", f"pictures {_told(mine)}", values=asdict(mine))
    origin = case.origin
    if not origin.brings("image_tower"):
        return
    told = origin.described.image
    if told is not None:
        yield _compared(mine, told, origin)
    elif origin.kind == "run":  # its tower has the same names and shapes, and there is no setting for the rest
        yield Finding("ok", f"{origin.checkpoint} does not say how its pictures were prepared")
    else:
        yield Finding(
            "warning",
            f"how {origin.checkpoint} had its pictures cannot be told: {origin.described.unknown}",
            "Compare size, mean and deviation with those that its maker states.",
        )


def _compared(mine: Preparation, told: Preparation, origin: Origin) -> Finding:
    values = {"mine": asdict(mine), "checkpoint": asdict(told)}
    shifted = [
        f"{name} {_numbers(ours)}, there {_numbers(theirs)}"
        for name, ours, theirs in (("mean", mine.mean, told.mean), ("deviation", mine.std, told.std))
        if any(abs(a - b) > _ALIKE for a, b in zip(ours, theirs, strict=True))
    ]
    resized = [f"{_shape(mine.resizing)}, there {_shape(told.resizing)}"] if _differs(mine, told) else []
    if shifted or resized:
        remedy = (
            "Take the network that the checkpoint describes (`class_path: siglightning.models.load_two_tower`, "
            f"`source: {origin.checkpoint}`), or a tower by the same name."
        )
        text = f"not as {origin.checkpoint} had its pictures: {'; '.join(shifted + resized)}"
        return Finding("error" if shifted else "warning", text, remedy, values=values)
    text = f"as {origin.checkpoint} had them"
    if mine.resizing != told.resizing:
        text += f", but for {_fine(mine.resizing)}, there {_fine(told.resizing)}: a few grey levels at sharp edges"
    if mine.image_size != told.image_size:
        text += f", but for the size, {told.image_size} there, so that positions are resized"
    return Finding("ok", text, values=values)


def _differs(mine: Preparation, told: Preparation) -> bool:
    """Whether other parts of a picture are seen, or in other proportions."""
    return mine.resizing.crop != told.resizing.crop


def _told(preparation: Preparation) -> str:
    side, resizing = preparation.image_size, preparation.resizing
    normal = f"mean {_numbers(preparation.mean)}, deviation {_numbers(preparation.std)}"
    return f"{side} x {side}, {_shape(resizing)} by {_fine(resizing)}, {normal}"


def _shape(resizing: Resizing) -> str:
    if resizing.crop is None:
        return "squashed"
    return "the middle cut out" if resizing.crop == 1 else f"the middle {resizing.crop:.3g} cut out"


def _fine(resizing: Resizing) -> str:
    return f"{resizing.interpolation} of {resizing.resampler}"


def _numbers(values: Sequence[float]) -> str:
    shown = [f"{value:.3g}" for value in values]
    return shown[0] if len({*shown}) == 1 else " ".join(shown)
