"""Which negatives count: a share of them at random, or those with the highest or the lowest loss (SigLIP, section 4.8).

The matrix of all logits is never held. A random mask is a hash of where a pair stands, so each rank knows its part
without asking. For the hardest negatives of the whole batch a threshold is found first, by a radix select over the bits
of the logits: each trip over all tiles counts the negatives by the next 16 bits, and the ranks add up their counts.
After two trips (four in fp64) the threshold is one exact logit, and the trip that forms the loss drops what lies below.

As it meets the same tiles (:mod:`siglightning.losses.pairs`) it meets the logits that were counted, to the bit. Another
number of ranks cuts other tiles, whose products may round differently: the same number of negatives is kept then, and
the same ones but where logits differ by rounding at the threshold.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate
from typing import Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from siglightning.distributed.exchange import sum_over_ranks
from siglightning.losses.inputs import Ranks
from siglightning.losses.pairs import Pairs, Tile

Kind = Literal["random", "hard", "easy"]

_DIGIT = 16  # bits that one trip decides: its histogram has 65,536 counts, 512 KiB
_INTEGERS = {torch.float32: torch.int32, torch.float64: torch.int64}
_WORD = 2**64


@dataclass(frozen=True)
class Negatives:
    """A rule by which negatives are masked: how many are kept, and which.

    ``ratio`` times the number of positives is kept, of all negatives of the global batch together. Positives are never
    masked, pairs left out by ``match="ignore"`` never counted. Where repeated captions leave a batch with fewer
    negatives than that, all are kept. The loss stays divided by the number of images, as in the paper, so it becomes
    smaller the more is masked.

    Hard and easy keep this number exactly, rounded to a whole one, on any number of ranks; of negatives that share the
    logit at the threshold each counts by the same fraction. Random keeps it in the mean: every pair has a draw of its
    own, a function of (seed, step, row, column in the global batch) and of nothing else.

    Communication beyond that of the loss: with match ids these travel once by themselves, and one number is added up.
    Hard and easy: texts and match ids travel twice more (four times in fp64), each time with one matrix product a tile
    and one all-reduce of 65,536 counts (512 KiB); ``comm="gather"`` gathers them anew each time. Random: nothing.
    Memory: the counts, and four tiles more than without a mask.

    Attributes:
        kind: ``random``; ``hard``, those with the highest loss, which is the highest logit; ``easy``, the lowest.
        ratio: negatives kept for each positive, from 1 to B - 1, which is all of them. The paper goes down to 1.6.
        seed: of the random mask, which changes with every step.

    Raises:
        ValueError: an unknown kind, or a ratio below 1.
    """

    kind: Kind
    ratio: float
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"Expected kind of negatives 'random', 'hard' or 'easy', got {self.kind!r}.")
        if not 1 <= self.ratio < math.inf:
            raise ValueError(
                f"Expected negatives with a ratio of at least 1, got {self.ratio}: below that a batch has fewer "
                "negatives than positives. The paper's strongest mask has 1.6."
            )

    def check_batch(self, num_pairs: int) -> None:
        """Refuse a global batch of ``num_pairs`` that has too few negatives for the ratio.

        Raises:
            ValueError: a ratio above ``num_pairs - 1``.
        """
        if self.ratio > num_pairs - 1:
            raise ValueError(
                f"Expected negatives with a ratio of at most {num_pairs - 1}, all that a global batch of {num_pairs} "
                f"has for each positive, got {self.ratio}. Lower the ratio, or leave negatives out to count all."
            )

    def num_kept(self, num_positives: int, num_negatives: int) -> int:
        """How many of the batch's negatives count; those tied at the threshold may share this number."""
        return min(round(self.ratio * num_positives), num_negatives)

    def matched_steps(self, steps: int, num_pairs: int) -> int:
        """Steps that see as many pairs as ``steps`` without a mask (section 4.8, "hard + matching total pairs seen").

        An image then counts in ``1 + ratio`` pairs and not in ``num_pairs``, so the run has to be
        ``num_pairs / (1 + ratio)`` times as long; repeated captions aside. Set ``trainer.max_steps`` to it.

        Args:
            steps: of the run to be matched.
            num_pairs: the global batch.
        """
        self.check_batch(num_pairs)
        return math.ceil(steps * Fraction(num_pairs) / (1 + Fraction(self.ratio)))


class Tied(NamedTuple):
    """Negatives of a tile whose logit is the threshold itself, of which only a fraction fits.

    They have one loss, so whichever were chosen the loss would be the same. Each counts by the fraction: its gradient
    is the mean over all choices.

    Attributes:
        where: bool, of the shape of the tile.
        logit: the threshold, a scalar.
        fraction: what each counts, above 0 and below 1.
    """

    where: Tensor
    logit: Tensor
    fraction: float

    def loss(self) -> Tensor:
        """Sum of their losses, fp64."""
        softplus = -torch.nn.functional.logsigmoid(-self.logit.double())
        return self.fraction * softplus * self.where.sum()

    def fill(self, derivatives: Tensor) -> None:
        """Write their derivatives by the logits."""
        derivatives.masked_fill_(self.where, self.fraction * torch.sigmoid(self.logit))


class Mask(Protocol):
    """Drops negatives from tiles whose positives have not changed sign yet."""

    def __call__(self, tile: Tile, owner: int) -> Tied | None:
        """Write ``-inf`` over the logits that are dropped and those that count in part; return the latter."""


def open_mask(rule: Negatives, step: int, pairs: Pairs, ranks: Ranks) -> Mask | None:
    """Find out which negatives of the global batch the rule keeps; every rank must come here alike.

    Args:
        rule: what to keep.
        step: of the training; another step has another random mask.
        pairs: of this rank.
        ranks: who shares the batch.

    Returns:
        The mask, or ``None`` where every negative is kept.
    """
    num_positives, num_negatives = _count(pairs, ranks)
    num_kept = rule.num_kept(num_positives, num_negatives)
    if num_kept == num_negatives:
        return None
    if rule.kind == "random":
        share = min(Fraction(rule.ratio) * num_positives / num_negatives, Fraction(1))
        return _RandomMask.of(rule.seed, step, share, pairs, ranks)
    return _select(pairs, ranks, num_kept, descending=rule.kind == "hard")


def _count(pairs: Pairs, ranks: Ranks) -> tuple[int, int]:
    """Positives and negatives of the global batch."""
    num_pairs = num_equal = sum(ranks.sizes)
    ids = pairs.match_ids
    if ids is not None:
        total = ids.new_zeros(())
        for _, (block,) in ranks.exchange().blocks((ids,)):
            block = block.sort().values
            total += (torch.searchsorted(block, ids, right=True) - torch.searchsorted(block, ids)).sum()
        num_equal = int(sum_over_ranks(ranks.ring, total))
    return (num_equal if pairs.match == "positive" else num_pairs), num_pairs**2 - num_equal


def _spare(where: Tensor, tile: Tile) -> Tensor:
    """Take out of a choice of a tile's pairs what is no negative."""
    for index in (tile.positives, tile.ignored):
        if index is not None:
            where[index] = False
    return where


@dataclass(frozen=True)
class _RandomMask:
    """Keeps each pair by a draw of its own: row i has a SplitMix64 generator, and column j takes its j-th number.

    ``streams`` holds the states of this rank's rows, int64 ``[b]``; draws above ``limit`` are dropped.
    """

    streams: Tensor
    limit: int
    offsets: Sequence[int]

    @classmethod
    def of(cls, seed: int, step: int, share: Fraction, pairs: Pairs, ranks: Ranks) -> "_RandomMask":
        offsets = [0, *accumulate(ranks.sizes)]
        start = offsets[ranks.ring.rank]
        key = _mix(_mix(torch.tensor(_signed(seed))).add_(step))
        rows = torch.arange(start, start + len(pairs.images), device=pairs.images.device)
        # A draw is one of 2**64 numbers from -2**63 on; so many are kept.
        return cls(_mix(rows.add_(key.item())), round(share * _WORD) - _WORD // 2 - 1, offsets)

    def __call__(self, tile: Tile, owner: int) -> None:
        first, device = self.offsets[owner] + 1, self.streams.device
        columns = torch.arange(first + tile.columns.start, first + tile.columns.stop, device=device)
        draws = _mix(self.streams[tile.rows, None] + columns.mul_(_GAMMA))
        tile.logits.masked_fill_(_spare(draws > self.limit, tile), -math.inf)


def _signed(word: int) -> int:
    """The 64 bits of a number as torch's int64 has them."""
    return (word + _WORD // 2) % _WORD - _WORD // 2


# SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators", figure 15).
_GAMMA = _signed(0x9E3779B97F4A7C15)
_ROUNDS = ((30, _signed(0xBF58476D1CE4E5B9)), (27, _signed(0x94D049BB133111EB)), (31, 1))


def _mix(words: Tensor) -> Tensor:
    """SplitMix64's finaliser, in place, of int64, whose products wrap around as those of unsigned words do."""
    for shift, factor in _ROUNDS:
        words ^= (words >> shift).bitwise_and_((1 << (64 - shift)) - 1)  # >> copies the sign into the upper bits
        words *= factor
    return words


@dataclass(frozen=True)
class _Threshold:
    """Keeps what lies on one side of a logit, and a fraction of what equals it."""

    logit: Tensor
    descending: bool
    fraction: float

    def __call__(self, tile: Tile, owner: int) -> Tied | None:
        s = tile.logits
        dropped = s < self.logit if self.descending else s > self.logit
        tied = None if self.fraction == 1 else Tied(_spare(s == self.logit, tile), self.logit, self.fraction)
        s.masked_fill_(_spare(dropped, tile), -math.inf)
        if tied is not None:
            s.masked_fill_(tied.where, -math.inf)
        return tied


def _select(pairs: Pairs, ranks: Ranks, num_kept: int, descending: bool) -> _Threshold:
    """Find the ``num_kept``-th highest (or lowest) logit of all ranks' negatives, 16 bits a trip."""
    dtype = pairs.images.dtype
    known, above, tied = None, 0, 0
    for shift in range(torch.finfo(dtype).bits - _DIGIT, -1, -_DIGIT):
        counts = sum_over_ranks(ranks.ring, _histogram(pairs, ranks, descending, shift, known)).cpu()
        at_least = counts.flip(0).cumsum(0)
        # Found, unless a device gives other products at every trip; then the threshold is right to their difference.
        place = min(int(torch.searchsorted(at_least, num_kept - above)), 2**_DIGIT - 1)
        digit = 2**_DIGIT - 1 - place
        tied = int(counts[digit])
        above += int(at_least[place]) - tied
        known = digit - 2 ** (_DIGIT - 1) if known is None else known << _DIGIT | digit
    assert known is not None
    logit = _logit_of(known, dtype).to(pairs.images.device)
    fraction = (num_kept - above) / tied if 0 < num_kept - above < tied else 1.0
    return _Threshold(logit if descending else -logit, descending, fraction)


def _histogram(pairs: Pairs, ranks: Ranks, descending: bool, shift: int, known: int | None) -> Tensor:
    """How many of this rank's negatives have which 16 bits at ``shift``, of those that begin with ``known``."""
    counts = torch.zeros(2**_DIGIT, dtype=torch.int64, device=pairs.images.device)
    for owner, texts, ids in pairs.blocks(ranks.exchange()):
        for tile in pairs.tiles(texts, ids, owner == ranks.ring.rank):
            keys = _keys(tile, descending)
            if known is None:
                digits = (keys >> shift).add_(2 ** (_DIGIT - 1))  # keys have a sign
            else:
                digits = (keys[keys >> (shift + _DIGIT) == known] >> shift).bitwise_and_(2**_DIGIT - 1)
            counts += torch.bincount(digits.flatten(), minlength=2**_DIGIT)
    return counts


def _keys(tile: Tile, descending: bool) -> Tensor:
    """Integers in the order of a tile's logits (reversed unless ``descending``), in the memory of the tile.

    A float's bits are in order where it is positive, and in reverse order where it is negative. What is no negative
    has the lowest key of all: as many are kept as there are negatives at most, so it is never reached.
    """
    s = tile.logits if descending else tile.logits.neg_()
    for index in (tile.positives, tile.ignored):
        if index is not None:
            s[index] = -math.inf
    bits, flipped = (tensor.view(_INTEGERS[s.dtype]) for tensor in (s, tile.scratch))
    num_bits = torch.finfo(s.dtype).bits
    torch.bitwise_right_shift(bits, num_bits - 1, out=flipped)  # all ones where negative
    return bits.bitwise_xor_(flipped.bitwise_and_(2 ** (num_bits - 1) - 1))


def _logit_of(key: int, dtype: torch.dtype) -> Tensor:
    """The number whose key it is."""
    bits = key if key >= 0 else key ^ (2 ** (torch.finfo(dtype).bits - 1) - 1)
    return torch.tensor(bits, dtype=_INTEGERS[dtype]).view(dtype)
