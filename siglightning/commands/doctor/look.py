"""Looking at the data: a sample with its tokens, pictures that cannot be read, classes, captions."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from siglightning.commands.doctor.case import Case
from siglightning.commands.doctor.findings import Finding, NotApplicableError
from siglightning.commands.doctor.pages import sample_page
from siglightning.data import Sample
from siglightning.models.tokenizers import Tokenizer

SHOWN = 8
MAX_CUT = 0.05  # share of captions that may lose their end
MAX_FLAT = 0.1  # share of pictures that may show one colour alone


def show_sample(case: Case) -> Iterator[Finding]:
    """Show the first samples as the model gets them, and ask whether they can be what is meant."""
    first, tokenizer = case.first, _tokenizer(case)
    count = min(SHOWN, len(first.samples))
    lines = [_line(sample, _tokens(first.batch, row), tokenizer) for row, sample in enumerate(first.samples[:count])]
    image = first.batch.get("image")
    values: dict[str, Any] = {"samples": lines, "pairs": len(first.samples)}
    text = f"{count} of the first batch"
    if image is not None:
        low, high, mean = int(image.min()), int(image.max()), float(image.float().mean())
        text += f", pictures {_shape(image)}, values {low} to {high}, mean {mean:.0f}"
        values |= {"shape": [*image.shape[1:]], "dtype": str(image.dtype), "min": low, "max": high, "mean": mean}
    if case.pages is not None and image is not None:
        path = sample_page(case.pages, image[:count].cpu(), lines)
        text, values["page"] = f"{text}; drawn in {path.name}", str(path)
    yield Finding("ok", text, lines=lines, values=values)
    if image is not None:
        yield from _odd_pictures(case, image)
    if tokenizer is not None and "text" in first.batch:
        yield from _odd_captions(first.samples, first.batch["text"], tokenizer)


def cut_captions(case: Case) -> Iterator[Finding]:
    """How many captions of the first batch are longer than the context."""
    first, tokenizer = case.first, _tokenizer(case)
    captions = [caption for sample in first.samples for caption in sample.get("captions", ())]
    if tokenizer is None or not captions:
        raise NotApplicableError("no text is read")
    share = first.truncated / len(captions)
    values = {"captions": len(captions), "truncated": first.truncated, "context_length": tokenizer.context_length}
    text = (
        f"{first.truncated} of {len(captions)} captions ({share:.0%}) are longer than the context of "
        f"{tokenizer.context_length} tokens and lose their end"
    )
    if share > MAX_CUT:
        remedy = "Raise the network's `context_length`, shorten the captions, or accept it."
        yield Finding("warning", text, remedy, values=values)
    else:
        yield Finding("ok", text, values=values)


def count_classes(case: Case) -> Iterator[Finding]:
    """Which classes have no training picture, and whether validation asks for them."""
    data = case.data
    names = data.class_names
    if not names:
        raise NotApplicableError("the data have no classes")
    train = data.train_set.labels
    if train is None:
        raise NotApplicableError("labels cannot be counted without reading every picture")
    counts = np.bincount(train, minlength=len(names))
    values: dict[str, Any] = {"classes": len(names), "fewest": int(counts.min()), "most": int(counts.max())}
    missing = [names[number] for number in np.flatnonzero(counts == 0).tolist()]
    if missing:
        yield Finding(
            "warning",
            f"{len(missing)} of {len(names)} classes have no training picture: {_some(missing)}",
            "Add pictures of them, or leave the classes out: a classifier cannot learn them.",
            values=values | {"missing": missing},
        )
    else:
        text = f"{len(names)} classes, {counts.min():,} to {counts.max():,} training pictures each"
        yield Finding("ok", text, values=values)
    val = data.val_set.labels
    if val is not None and len(np.unique(val)) == 1:
        yield Finding(
            "warning",
            f"every validation picture is of the class {names[int(val[0])]!r}",
            "Validate on pictures of all classes; a sorted list was perhaps cut in two.",
        )


def _odd_pictures(case: Case, image: Tensor) -> Iterator[Finding]:
    side = case.base_task.input_spec.image_size
    if tuple(image.shape[1:]) != (3, side, side) or image.dtype != torch.uint8:
        yield Finding(
            "error",
            f"expected uint8 pictures [3, {side}, {side}] of the data, got {image.dtype} {[*image.shape[1:]]}",
            "Let the data module resize to the size that `input_spec` states, and leave normalising to the tower.",
        )
    elif int(image.max()) <= 1:
        yield Finding(
            "error",
            "no value of any picture is above 1, of 255: all is black",
            "Store pictures with values from 0 to 255; these were perhaps scaled to [0, 1] before.",
        )
    else:
        flat = (image.flatten(1).amax(1) == image.flatten(1).amin(1)).float().mean().item()
        if flat > MAX_FLAT:
            yield Finding(
                "warning",
                f"{flat:.0%} of {len(image)} pictures show one colour alone",
                "Look at the files: empty renderings and failed downloads look so.",
                values={"flat": flat},
            )


def _odd_captions(samples: list[Sample], text: Tensor, tokenizer: Tokenizer) -> Iterator[Finding]:
    captions = [sample["captions"][0] for sample in samples if sample.get("captions")]
    says_nothing = tokenizer([""])[0]
    empty = [caption for caption, row in zip(captions, text.cpu(), strict=False) if bool((row == says_nothing).all())]
    if empty:
        yield Finding(
            "warning",
            f"{len(empty)} of {len(captions)} captions give no token, such as {empty[0]!r}",
            "Remove or write them: they teach that nothing means these pictures.",
            values={"empty": len(empty)},
        )
    commonest, count = Counter(captions).most_common(1)[0] if captions else ("", 0)
    if len(captions) > 1 and count > len(captions) / 2:
        yield Finding(
            "warning",
            f"{count} of {len(captions)} captions are {commonest!r}",
            "Check which column or which templates the captions come from.",
            values={"commonest": commonest, "count": count},
        )


def _line(sample: Sample, tokens: Tensor | None, tokenizer: Tokenizer | None) -> str:
    caption = (sample.get("captions") or ["(no caption)"])[0]
    told = [f"{sample.get('id')}", repr(caption[:80])]
    if tokens is not None and tokenizer is not None:
        told.append(f"read as {tokenizer.decode(tokens)!r} in {_count(tokens, tokenizer)} tokens")
    label = sample.get("label")
    if isinstance(label, int) or (label is not None and label.ndim == 0):
        told.append(f"label {int(label)}")
    return ", ".join(told)


def _count(tokens: Tensor, tokenizer: Tokenizer) -> int:
    """Tokens before the padding, the one that closes the text included."""
    padding = 0
    for token in reversed(tokens.tolist()):
        if token != tokenizer.pad_id:
            break
        padding += 1
    closing = tokenizer.eos_id == tokenizer.pad_id and padding > 0
    return len(tokens) - padding + closing


def _tokens(batch: Any, row: int) -> Tensor | None:
    return batch["text"][row].cpu() if "text" in batch else None


def _tokenizer(case: Case) -> Tokenizer | None:
    tokenizer = case.base_task.input_spec.tokenizer
    return tokenizer if isinstance(tokenizer, Tokenizer) else None


def _shape(image: Tensor) -> str:
    return f"{str(image.dtype).removeprefix('torch.')} [{', '.join(map(str, image.shape[1:]))}]"


def _some(names: list[str]) -> str:
    return f"{', '.join(names[:5])}{' ...' if len(names) > 5 else ''}"
