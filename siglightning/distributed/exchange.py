"""How every rank sees every block, and how what it adds to a block finds its way home: round the ring, or gathered.

A loss takes the blocks one by one; for each it may hand on its share of something that belongs to the block's owner
(a gradient, a log-sum-exp). At the end :meth:`Exchange.home` is the combination of all ranks' shares of the own block.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn import functional

from siglightning.distributed.ring import Block, Flight, Ring, buffers_like
from siglightning.distributed.watch import naming_the_silent

Comm = Literal["ring", "gather"]
Accumulators = Literal["full", "bf16"]
Combine = Callable[[Tensor, Tensor], Tensor]


class Exchange(ABC):
    """One pass over the blocks of all ranks.

    Args:
        ring: the ranks.
        sizes: rows of every rank's block.
        combine: joins two ranks' shares of one block; associative and commutative. Writes into its second argument or
            returns another tensor of its dtype; the first may be of ``travels_as``.
        travels_as: dtype in which shares are sent; they are joined in their own. ``None``: in their own, too.
    """

    def __init__(
        self,
        ring: Ring,
        sizes: Sequence[int],
        combine: Combine = lambda a, b: b.add_(a),
        travels_as: torch.dtype | None = None,
    ) -> None:
        self.ring, self.sizes, self.combine = ring, sizes, combine
        self.travels_as = travels_as if ring.size > 1 else None

    @abstractmethod
    def blocks(self, own: Block) -> Iterator[tuple[int, Block]]:
        """Yield ``(owner, block)`` for every rank."""

    def zeros_like(self, block: Tensor, dtype: torch.dtype) -> Tensor:
        """Zeros ``[rows of the block, ...]`` to add a share up in, for :meth:`hand_on`."""
        return torch.zeros_like(block, dtype=dtype)

    @abstractmethod
    def hand_on(self, share: Tensor) -> None:
        """Give this rank's share ``[rows of the block, ...]`` of the block just yielded; once a block, or never."""

    @abstractmethod
    def home(self) -> Tensor:
        """All ranks' shares of the own block, combined; after the last block. In the dtype in which they travelled."""

    def _packed(self, share: Tensor) -> Tensor:
        return share if self.travels_as is None else share.to(self.travels_as)


class RingExchange(Exchange):
    """Blocks travel the ring, and behind each its accumulator, which is home after ``size`` hops.

    Both fly while the next block is computed. A rank holds at most two blocks and three accumulators, however many
    ranks there are.
    """

    _flight: Flight | None = None
    _hops = 0
    _spare: Block = ()  # accumulators that have left or were added up; new ones would tear holes into the heap

    def blocks(self, own: Block) -> Iterator[tuple[int, Block]]:
        """See :meth:`Ring.travel`."""
        return self.ring.travel(own, self.sizes)

    def zeros_like(self, block: Tensor, dtype: torch.dtype) -> Tensor:
        """Zeros, in memory that an accumulator has left where it fits."""
        fitting = [tensor for tensor in self._spare if tensor.shape == block.shape and tensor.dtype == dtype]
        if not fitting:
            return torch.zeros_like(block, dtype=dtype)
        self._spare = tuple(tensor for tensor in self._spare if tensor is not fitting[0])
        return fitting[0].zero_()

    def hand_on(self, share: Tensor) -> None:
        """Combine the share with what the ranks before have added, and send it after its block."""
        if self._flight is not None:
            arrived, left = self._flight.wait()[0], self._flight.leaving[0]
            share = self.combine(arrived, share)
            self._spare = (arrived, left)
        self._hops += 1
        leaving = self._packed(share)
        arriving = buffers_like((leaving,), self.sizes[self.ring.owner(self._hops)], self._spare[:1] or None)
        kept = self._spare if leaving is share else (*self._spare, share)
        self._spare = tuple(tensor for tensor in kept if tensor is not arriving[0])
        self._flight = self.ring.shift((leaving,), arriving)

    def home(self) -> Tensor:
        """Wait for the accumulator that has been with every rank."""
        assert self._flight is not None
        assert self._hops == self.ring.size  # a loss hands on once a block
        return self._flight.wait()[0]


class GatherExchange(Exchange):
    """One all-gather of the blocks before, one all-to-all of the shares after: ``size`` times the memory, two calls."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._shares: list[Tensor] = []
        self._dtype: torch.dtype | None = None

    def blocks(self, own: Block) -> Iterator[tuple[int, Block]]:
        """Gather everything, then yield in the order of the ring, so that both forms add up alike."""
        gathered = [self._all_gather(tensor) for tensor in own]
        for hop in range(self.ring.size):
            owner = self.ring.owner(hop)
            yield owner, tuple(parts[owner, : self.sizes[owner]] for parts in gathered)

    def hand_on(self, share: Tensor) -> None:
        """Keep the share until all are there."""
        self._dtype = share.dtype
        self._shares.append(self._packed(share))

    def home(self) -> Tensor:
        """Send each rank its shares and combine those that arrive, in the order in which a ring would."""
        size, rank = self.ring.size, self.ring.rank
        outgoing = torch.stack([self._padded(self._shares[self.ring.owner(owner)]) for owner in range(size)])
        incoming = torch.empty_like(outgoing)
        with naming_the_silent(self.ring.group):
            dist.all_to_all_single(incoming, outgoing, group=self.ring.group)
        total = incoming[rank]
        for hop in range(1, size):
            total = self.combine(total, incoming[(rank + hop) % size].to(self._dtype))
        return total[: self.sizes[rank]].clone()  # alone: a view would keep all ranks' shares until backward

    def _all_gather(self, own: Tensor) -> Tensor:
        """``[size, largest block, ...]``; rows beyond a rank's own are zero."""
        padded = self._padded(own).contiguous()
        gathered = padded.new_empty(self.ring.size * len(padded), *padded.shape[1:])
        with naming_the_silent(self.ring.group):
            dist.all_gather_into_tensor(gathered, padded, group=self.ring.group)
        return gathered.view(self.ring.size, *padded.shape)

    def _padded(self, block: Tensor) -> Tensor:
        missing = max(self.sizes) - len(block)
        return functional.pad(block, (0, 0) * (block.ndim - 1) + (0, missing)) if missing else block


def open_exchange(comm: Comm, ring: Ring, sizes: Sequence[int], **options: Any) -> Exchange:
    """Start a pass over the blocks of all ranks, with ``options`` of :class:`Exchange`; a ring of one is the ring."""
    form = GatherExchange if comm == "gather" and ring.size > 1 else RingExchange
    return form(ring, sizes, **options)


def sum_over_ranks(ring: Ring, values: Tensor) -> Tensor:
    """Sum ``values``, of one shape and dtype on all ranks, in place; one all-reduce, nothing in a ring of one."""
    if ring.size > 1:
        with naming_the_silent(ring.group):
            dist.all_reduce(values, group=ring.group)
    return values
