"""Samples of a stream, ready for a batch."""

import hashlib
import os
from collections.abc import Iterator

from torch import Tensor
from typing_extensions import override

from siglightning.data.bad_samples import BadSampleLog
from siglightning.data.images import BadSampleError
from siglightning.data.map_style import MAX_SUBSTITUTES, Preparation, PreparedDataset
from siglightning.data.source import RawSample, SampleStream


class StreamDataset(PreparedDataset):
    """An epoch of a stream.

    The sampler asks for sample 0, 1, 2 ... of an epoch as of any other data set, so that the number of steps, the
    shares of processes and the position of a resumed run are no business of the stream. What comes is the next sample
    of a stream that each loading process opens for itself at each epoch, seeded by the epoch and the number of the
    first sample that it is asked for: those numbers differ for all ranks and workers, and mostly after a resume.

    Args:
        stream: where samples come from.
        preparation: what is done to them.
        log: takes down what cannot be used.
    """

    def __init__(self, stream: SampleStream, preparation: Preparation, log: BadSampleLog | None = None) -> None:
        super().__init__(stream, preparation, log)
        self.stream = stream
        self._opened: tuple[int, int] | None = None
        self._flow: Iterator[tuple[str, RawSample]] = iter(())
        self._bad_in_a_row = 0

    @override
    def __len__(self) -> int:
        return len(self.stream)

    @override
    def load(self, sample: int, epoch: int) -> tuple[str, RawSample, Tensor]:
        if (epoch, os.getpid()) != self._opened:  # a forked process has not opened what its parent has
            self._opened = epoch, os.getpid()
            self._flow = self.stream.open(_seed(self.preparation.seed, epoch, sample), self._bad)
        while True:
            key, raw = next(self._flow)
            try:
                image = self.pixels(raw)
            except BadSampleError as error:
                self._bad(key, error)
            except Exception as error:
                raise RuntimeError(f"Sample {key} of the stream failed: {error!r}") from error
            else:
                self.log.good()
                self._bad_in_a_row = 0
                return key, raw, image

    def _bad(self, key: str, error: BadSampleError) -> None:
        """Take a bad sample down; a stream of nothing else would never end."""
        self.log.bad(key, error)
        self._bad_in_a_row += 1
        if self._bad_in_a_row >= MAX_SUBSTITUTES:
            raise ValueError(
                f"None of the last {MAX_SUBSTITUTES} samples up to {key} could be used: {dict(self.log.reasons)}."
            )


def _seed(*numbers: int) -> int:
    """A number of 63 bits that depends on all of them."""
    digest = hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1
