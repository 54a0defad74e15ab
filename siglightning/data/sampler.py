"""The order of training samples: a pure function of (seed, epoch), cut into global batches, shared among ranks."""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import Sampler

from siglightning.data.orders import Order, as_they_are, shuffled


class SampleKey(NamedTuple):
    """What a data set is asked for; the epoch travels along so that persistent workers draw the right numbers.

    Attributes:
        sample: position in the data set.
        epoch: counted from 0; evaluation uses 0.
    """

    sample: int
    epoch: int


class GlobalBatchSampler(Sampler[list[SampleKey]]):
    """Yields this rank's share of each global batch; the incomplete last batch of an epoch is dropped.

    Global batch i of an epoch holds the same samples for every number of processes. The position is global too:
    iteration begins at `position()`, so a resumed run continues without replaying anything.

    Args:
        num_samples: size of the data set.
        global_batch_size: samples in one optimiser step, over all processes.
        rank: this process.
        world_size: number of processes.
        seed: of the order.
        shuffle: ``False`` keeps the order of the data set.
        order: of the epochs, where it is not a plain shuffle of all samples.
        position: asked at the start of every iteration for (epoch, batches of it that are already done). Without
            it, iteration begins at the attributes `epoch` and `start_batch`; `start_batch` holds for one iteration.

    Raises:
        ValueError: the batch is larger than the data, or the processes do not divide it.
    """

    def __init__(
        self,
        num_samples: int,
        global_batch_size: int,
        rank: int = 0,
        world_size: int = 1,
        seed: int = 0,
        shuffle: bool = True,
        order: Order | None = None,
        position: Callable[[], tuple[int, int]] | None = None,
    ) -> None:
        _check_sizes(num_samples, global_batch_size, world_size)
        self.num_samples = num_samples
        self.global_batch_size = global_batch_size
        self.rank = rank
        self.world_size = world_size
        plain = shuffled(num_samples, seed) if shuffle else as_they_are(num_samples)
        self._order = order or plain
        self.epoch = 0
        self.start_batch = 0
        self._position = position

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next iteration; without effect where `position` decides."""
        self.epoch = epoch

    def __len__(self) -> int:
        """Batches of a whole epoch, also while a resumed epoch yields fewer: Lightning counts from its start."""
        return self.num_samples // self.global_batch_size

    def order(self, epoch: int) -> NDArray[np.int64] | range:
        """The whole epoch's order of samples, integers ``[num_samples]``."""
        return self._order(epoch)

    def __iter__(self) -> Iterator[list[SampleKey]]:
        if self._position is not None:
            epoch, start = self._position()
        else:
            epoch, start, self.start_batch = self.epoch, self.start_batch, 0
        order = self.order(epoch)
        share = self.global_batch_size // self.world_size
        for batch in range(start, len(self)):
            first = batch * self.global_batch_size + self.rank * share
            yield [SampleKey(int(index), epoch) for index in order[first : first + share]]


class EvaluationSampler(Sampler[SampleKey]):
    """Every sample exactly once, in order; with several processes each takes one contiguous stretch.

    Concatenating the processes' results in rank order restores the order of the data set. Stretches differ by one
    sample at most, and nothing is repeated to even them out: it would count twice.

    Args:
        num_samples: size of the data set.
        rank: this process.
        world_size: number of processes.
    """

    def __init__(self, num_samples: int, rank: int = 0, world_size: int = 1) -> None:
        self._range = range(rank * num_samples // world_size, (rank + 1) * num_samples // world_size)

    def __len__(self) -> int:
        return len(self._range)

    def __iter__(self) -> Iterator[SampleKey]:
        return (SampleKey(index, 0) for index in self._range)


def check_global_batch(global_batch_size: int, world_size: int) -> None:
    """Raise ``ValueError``, naming the nearest right sizes, unless all processes get equal shares of a batch."""
    if global_batch_size < 1:
        raise ValueError(f"`data.init_args.global_batch_size` must be at least 1, got {global_batch_size}.")
    if global_batch_size % world_size:
        below = global_batch_size - global_batch_size % world_size
        nearest = [size for size in (below, below + world_size) if size > 0]
        raise ValueError(
            f"`data.init_args.global_batch_size` must be divisible by the {world_size} processes, got "
            f"{global_batch_size}. The nearest sizes are {' and '.join(map(str, nearest))}."
        )


def _check_sizes(num_samples: int, global_batch_size: int, world_size: int) -> None:
    check_global_batch(global_batch_size, world_size)
    if global_batch_size > num_samples:
        raise ValueError(
            f"One batch must fit into the training data: `data.init_args.global_batch_size` is {global_batch_size}, "
            f"but there are only {num_samples} samples. Choose at most {num_samples - num_samples % world_size}."
        )
