"""Who sends what to whom around a ring of processes, and when; no arithmetic.

Every rank sends to the next one and receives from the previous one. After hop h a rank holds the block of rank
``(rank - h) % size``, so in ``size - 1`` hops every rank has seen every block. With three ranks and four pairs each
(SigLIP paper, Figure 1; I are images, T texts)::

    hop      rank 0              rank 1              rank 2
    0        I0 x T0 (pairs)     I1 x T1 (pairs)     I2 x T2 (pairs)
    1        I0 x T2             I1 x T0             I2 x T1
    2        I0 x T1             I1 x T2             I2 x T0
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from siglightning.distributed.watch import call_tag, naming_the_silent

Block = tuple[Tensor, ...]


@dataclass(frozen=True)
class Flight:
    """Tensors under way to the next rank, and those that arrive from the previous one.

    Attributes:
        arriving: buffers that hold the previous rank's tensors once :meth:`wait` has returned.
        leaving: what was sent; kept alive until it has left.
        requests: open requests, one a tensor and direction under gloo, one for all under NCCL.
        group: whose ranks exchange them.
    """

    arriving: Block
    leaving: Block = ()
    requests: Sequence[Any] = ()
    group: dist.ProcessGroup | None = None

    def wait(self) -> Block:
        """Wait for all requests and return what arrived.

        Raises:
            RingError: nothing arrived within the group's time-out, or a rank is gone.
        """
        with naming_the_silent(self.group):
            for request in self.requests:
                request.wait()
        return self.arriving


@dataclass(frozen=True)
class Ring:
    """A rank's place in a ring; a ring of one sends to itself and needs no process group.

    Attributes:
        rank: this process's number in the group.
        size: number of ranks.
        group: the process group whose ranks stand in a ring, in their order; ``None`` for a ring of one.
    """

    rank: int = 0
    size: int = 1
    group: dist.ProcessGroup | None = None

    @classmethod
    def of(cls, group: dist.ProcessGroup | None) -> "Ring":
        """The ring of a group's ranks; ``None`` and a group of one process are a ring of one."""
        if group is None or group.size() == 1:
            return cls()
        return cls(group.rank(), group.size(), group)

    def owner(self, hop: int) -> int:
        """The rank whose block is here after ``hop`` hops."""
        return (self.rank - hop) % self.size

    def shift(self, leaving: Block, arriving: Block) -> Flight:
        """Send ``leaving`` to the next rank and receive ``arriving`` from the previous one, without waiting.

        Two shifts between the same neighbours may be under way at once: every rank makes them in the same order, by
        which NCCL and gloo match them. All operations of a shift are posted together, without which NCCL may
        deadlock.

        Args:
            leaving: contiguous tensors, on the group's device; not to be written before the flight has been waited for.
            arriving: buffers of the previous rank's shapes and dtypes.
        """
        if self.size == 1:
            return Flight(leaving)
        following, previous = (self.rank + 1) % self.size, (self.rank - 1) % self.size
        group, tag = self.group, call_tag(self.group)
        sends = [dist.P2POp(dist.isend, block, group=group, tag=tag, group_peer=following) for block in leaving]
        receives = [dist.P2POp(dist.irecv, block, group=group, tag=tag, group_peer=previous) for block in arriving]
        with naming_the_silent(self.group):
            return Flight(arriving, leaving, dist.batch_isend_irecv(sends + receives), self.group)

    def travel(self, own: Block, sizes: Sequence[int]) -> Iterator[tuple[int, Block]]:
        """Yield ``(owner, block)`` for every rank, the own block first; the next is in flight meanwhile.

        Each rank sends each block once to the next rank, ``size - 1`` times in all. Two buffers take turns, so a block
        is only good until the next one is asked for.

        Args:
            own: this rank's tensors, ``[b, ...]`` with ``b = sizes[rank]``.
            sizes: rows of every rank's block.
        """
        held, spare = tuple(tensor.contiguous() for tensor in own), None
        for hop in range(self.size):
            is_last = hop == self.size - 1
            flight = None if is_last else self.shift(held, buffers_like(held, sizes[self.owner(hop + 1)], spare))
            yield self.owner(hop), held
            if flight is not None:
                spare, held = held if hop else None, flight.wait()  # the own block is the caller's


def buffers_like(block: Block, rows: int, spare: Block | None = None) -> Block:
    """Tensors to receive into, with ``rows`` rows and otherwise like those of ``block``: the spare ones if they fit."""
    if spare is not None and len(spare[0]) == rows:
        return spare
    return tuple(torch.empty((rows, *tensor.shape[1:]), dtype=tensor.dtype, device=tensor.device) for tensor in block)
