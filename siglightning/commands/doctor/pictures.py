"""Pictures of the sets: which cannot be read, and which of them are in two sets."""

import hashlib
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from siglightning.commands.doctor.case import Case
from siglightning.commands.doctor.findings import Finding, Level, NotApplicableError
from siglightning.commands.doctor.pages import pair_page
from siglightning.data import BaseDataModule, SampleDataset
from siglightning.data.bad_samples import ENOUGH, BadSampleLog
from siglightning.data.map_style import PreparedDataset
from siglightning.data.streamed import StreamDataset

BUDGET_S = 10.0  # seconds for each set, after which no more pictures of it are read
SIDE = 16  # of the thumbnails that are compared
NEAR = 0.15  # distance of thumbnails, over how much they vary, below which pictures are taken for one
OF_TRAINING = 5  # times as many training pictures as of another set
MANY = 0.1  # share of a test set, for sure, that makes its result worthless when it was trained on
_AT_ONCE = 32
_BLOCK = 4096  # training pictures at a time in comparisons
_SHOWN = 8


@dataclass
class Looked:
    """Pictures of one set that were read.

    Attributes:
        size: of the set.
        rows: of those that were read.
        ids: of what came; the next one takes the place of one that cannot be read.
        hashes: of their pixels, as the model would get them.
        thumbnails: float32 ``[n, 3, SIDE, SIDE]``.
        bad: reason -> how many could not be read.
        bad_keys: some of these.
        limit: share that training accepts.
    """

    size: int
    rows: list[int] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    hashes: list[bytes] = field(default_factory=list)
    thumbnails: Tensor = field(default_factory=lambda: torch.empty(0, 3, SIDE, SIDE))
    bad: dict[str, int] = field(default_factory=dict)
    bad_keys: list[str] = field(default_factory=list)
    limit: float = 0.0


def read_pictures(case: Case) -> Iterator[Finding]:
    """Whether a sample of each set's pictures can be read."""
    sets = looked_at(case)
    for name, looked in sets.items():
        seen, bad = len(looked.rows), sum(looked.bad.values())
        text = f"{name}: {seen:,} of {looked.size:,} pictures read, {bad} cannot be"
        values = {"set": name, "read": seen, "of": looked.size, "bad": looked.bad, "keys": looked.bad_keys}
        if not bad:
            yield Finding("ok", text, values=values)
            continue
        reasons = ", ".join(f"{count} {reason}" for reason, count in looked.bad.items())
        too_many = bad > looked.limit * max(seen, ENOUGH)  # as training counts
        remedy = "Repair or remove them" + (", or raise `data.init_args.max_bad_fraction`." if too_many else ".")
        text = f"{text} ({reasons}), such as {', '.join(looked.bad_keys[:3])}"
        if too_many:
            text += f"; training stops above {looked.limit:.1%}"
        yield Finding("error" if too_many else "warning", text, remedy, values=values)


def find_duplicates(case: Case) -> Iterator[Finding]:
    """Whether pictures that validate or test were trained on: the same pixels, or nearly, or mirrored."""
    sets = looked_at(case)
    train = sets.pop("train", None)
    if train is None:
        raise NotApplicableError("a stream of training pictures cannot be gone through")
    if case.data.test_sets and all(part is case.data.val_set for part in case.data.test_sets.values()):
        yield Finding("ok", "there is no test set of its own: what validates is tested on")
    shown: list[tuple[str, int, int, str]] = []
    for name, other in sets.items():
        twins = nearest_twins(other, train)
        shown += [(name, row, twin, kind) for row, (twin, kind) in twins.items()]
        yield _duplicates(name, other, train, twins)
    if shown and case.pages is not None:
        path = _draw_pairs(case, sets, train, shown[:_SHOWN])
        yield Finding(
            "ok", f"{min(len(shown), _SHOWN)} of these pairs are drawn in {path.name}", values={"page": str(path)}
        )


def nearest_twins(looked: Looked, train: Looked) -> dict[int, tuple[int, str]]:
    """For each picture (its position in ``looked``) that has a twin in ``train``: the twin's position, and its kind.

    Kinds are ``same pixels``, ``nearly``, and ``mirrored``. Two thumbnails are near when the root mean square of their
    difference is below :data:`NEAR` times the standard deviation of the flatter one: brightness apart, JPEG at quality
    50 and resizing to three quarters and back stay below it in 95 of 100 drawings of 64 pixels, and two drawings of the
    same thing by different hands hardly ever do.
    """
    places = {digest: place for place, digest in reversed([*enumerate(train.hashes)])}
    found = {row: (places[digest], "same pixels") for row, digest in enumerate(looked.hashes) if digest in places}
    for kind, thumbnails in (("nearly", looked.thumbnails), ("mirrored", looked.thumbnails.flip(3))):
        distance, nearest = _nearest(thumbnails.flatten(1), train.thumbnails.flatten(1))
        for row in np.flatnonzero(distance < NEAR).tolist():
            found.setdefault(row, (int(nearest[row]), kind))
    return found


def looked_at(case: Case) -> dict[str, Looked]:
    """Pictures of ``train``, ``val`` and the test sets, each read once for all checks."""
    kept = case.__dict__.setdefault("_looked_at", {})
    if not kept:
        data = case.data
        if "image" not in data.example:
            raise NotApplicableError("the data hold stored features and no pictures")
        kept.update(_look(data, case.samples))
    return dict(kept)


def _look(data: BaseDataModule, count: int) -> dict[str, Looked]:
    sets: dict[str, SampleDataset] = {"train": data.train_set, "val": data.val_set}
    sets |= {f"test {name}": part for name, part in data.test_sets.items() if part is not data.val_set}
    return {
        name: _read(
            part.plain(), count * (OF_TRAINING if name == "train" else 1), getattr(data, "max_bad_fraction", 0.0)
        )
        for name, part in sets.items()
        if not isinstance(part, StreamDataset)
    }


def _read(samples: SampleDataset, count: int, limit: float) -> Looked:
    """Read up to ``count`` pictures at random places, always the same ones."""
    log = BadSampleLog(None, 1.0)  # the run's own counts what training meets
    if isinstance(samples, PreparedDataset):
        samples.log = log
    looked = Looked(len(samples), limit=limit)
    rows = np.sort(np.random.default_rng(0).permutation(len(samples))[:count])
    order = np.random.default_rng(1).permutation(len(rows))  # where time ends it, any part is a fair sample
    thumbnails, start = [], time.monotonic()
    for first in range(0, len(rows), _AT_ONCE):
        if first and time.monotonic() - start > BUDGET_S:
            break
        some = rows[np.sort(order[first : first + _AT_ONCE])].tolist()
        images = []
        for row, sample in zip(some, samples.__getitems__(some), strict=True):
            looked.rows.append(row)
            looked.ids.append(str(sample.get("id")))
            images.append(sample["image"])
        looked.hashes += [hashlib.blake2b(image.contiguous().numpy().data, digest_size=16).digest() for image in images]
        thumbnails.append(thumbnail(torch.stack(images)))
    looked.thumbnails = torch.cat(thumbnails) if thumbnails else looked.thumbnails
    looked.bad, looked.bad_keys = dict(log.reasons), log.keys
    return looked


def thumbnail(images: Tensor) -> Tensor:
    """Means over the cells of a grid: uint8 ``[n, 3, S, S]`` to float32 ``[n, 3, SIDE, SIDE]``."""
    return functional.adaptive_avg_pool2d(images.float(), SIDE)


def _nearest(some: Tensor, others: Tensor) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Smallest relative distance of each row ``[n, k]`` to the rows ``[m, k]``, and where it is; in blocks."""
    best, place = torch.full((len(some),), torch.inf), torch.zeros(len(some), dtype=torch.int64)
    spread = some.std(1, correction=0)
    for first in range(0, len(others), _BLOCK):
        block = others[first : first + _BLOCK]
        flatter = torch.minimum(spread[:, None], block.std(1, correction=0))
        # One colour alone is like any other of its kind: never near, unless its pixels are the same.
        relative = torch.cdist(some, block) / some.shape[1] ** 0.5 / flatter.clamp(min=1.0)
        relative[flatter < 1.0] = torch.inf
        value, index = relative.min(1)
        closer = value < best
        best, place = torch.where(closer, value, best), torch.where(closer, index + first, place)
    return best.numpy(), place.numpy()


def _duplicates(name: str, other: Looked, train: Looked, twins: dict[int, tuple[int, str]]) -> Finding:
    kinds = [kind for _, kind in twins.values()]
    counts = {kind: kinds.count(kind) for kind in ("same pixels", "nearly", "mirrored")}
    share, seen = len(twins) / max(1, len(other.rows)), len(other.rows)
    sample = f"{seen:,} of {other.size:,} compared with {len(train.rows):,} of {train.size:,} training pictures"
    smallest = least_share(seen, len(train.rows) / max(1, train.size))
    values = {"set": name, "counts": counts, "share": share, "compared": seen, "with": len(train.rows)}
    values |= {"examples": _examples(other, train, twins), "found_from": smallest}
    if not twins:
        text = f"{name}: {sample}, none alike; more than {min(1.0, smallest):.1%} alike would be seen (95 %)"
        return Finding("ok", text, values=values)
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    of_training = len(train.rows) / max(1, train.size)
    if seen == other.size and of_training == 1:
        low, high, estimate = share, share, f"{share:.1%}"  # no sample, nothing to guess
    else:
        low, high = (min(1.0, end / of_training) for end in binomial_interval(len(twins), seen))
        estimate = f"about {min(1.0, share / of_training):.1%} (95 %: {low:.1%} to {high:.1%})"
    text = f"{name}: {sample}, {len(twins)} alike ({told}), so {estimate} of the set is trained on"
    remedy = "Leave these pictures out of one of both sets; results on them measure memory."
    level: Level = "error" if low >= MANY else "warning"
    return Finding(level, text, remedy, _examples(other, train, twins), values | {"low": low, "high": high})


def least_share(seen: int, of_training: float) -> float:
    """Share of a set with a twin in training from which a sample shows at least one, 95 times of 100.

    Each of ``seen`` pictures shows its twin with the probability ``of_training``; that all of them miss it has the
    probability ``(1 - p * of_training)**seen``, so ``p = (1 - .05**(1 / seen)) / of_training``.
    """
    missed: float = 0.05 ** (1 / max(1, seen))
    return (1 - missed) / max(of_training, 1e-12)


def binomial_interval(hits: int, count: int, error: float = 0.05) -> tuple[float, float]:
    """Shares that so many ``hits`` among ``count`` do not rule out: the exact interval of Clopper and Pearson (1934).

    Args:
        hits: from 0 to ``count``.
        count: at least 1.
        error: probability, at most, that the true share is not within.
    """

    def at_most(number: int, share: float) -> float:
        """Probability of no more than ``number`` hits."""
        logs = (
            math.lgamma(count + 1) - math.lgamma(k + 1) - math.lgamma(count - k + 1)
            + k * math.log(share) + (count - k) * math.log1p(-share)
            for k in range(number + 1)
        )  # fmt: skip
        return math.fsum(map(math.exp, logs))

    def share_where(number: int, probability: float) -> float:
        """The share with that probability of no more than ``number`` hits, which falls with the share."""
        low, high = 0.0, 1.0
        for _ in range(50):
            middle = (low + high) / 2
            low, high = (middle, high) if at_most(number, middle) > probability else (low, middle)
        return low

    least = share_where(hits - 1, 1 - error / 2) if hits else 0.0
    return least, share_where(hits, error / 2) if hits < count else 1.0


def _examples(other: Looked, train: Looked, twins: dict[int, tuple[int, str]]) -> Sequence[str]:
    rows = sorted(twins.items())[:_SHOWN]
    return [f"{other.ids[row]} and {train.ids[twin]}, {kind}" for row, (twin, kind) in rows]


def _draw_pairs(case: Case, sets: dict[str, Looked], train: Looked, shown: list[tuple[str, int, int, str]]) -> Path:
    data = case.data
    parts = {"val": data.val_set} | {f"test {name}": part for name, part in data.test_sets.items()}
    pairs = []
    for name, row, twin, kind in shown:
        one = parts[name].plain()[sets[name].rows[row]]["image"]
        other = data.train_set.plain()[train.rows[twin]]["image"]
        pairs.append((one, other, f"{name} {sets[name].ids[row]}, training {train.ids[twin]}: {kind}"))
    assert case.pages is not None
    return pair_page(case.pages, pairs)
