"""Ranks that share a loss: do they send what the others expect, and who is to blame when nothing arrives?

Before the first call all ranks exchange what they are about to send (one all-gather of 512 bytes); from then on each
checks its own call against that, without communication. So a rank that differs ends with an error instead of a hang.

When a transfer fails, a rank cannot tell who failed: only the neighbours of a dead rank notice at once, a stalled one
lets everybody time out, and whoever gives up lets its own neighbour down. So the first to fail calls all ranks through
the store by which the group met; a thread on each answers (:mod:`siglightning.distributed.sentinel`), also where the
rank itself is waiting or stuck. The store outlives the group's broken connections and tells all ranks, not only one.
"""

import json
import weakref
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch.distributed.distributed_c10d import _get_process_group_store

from siglightning.distributed.sentinel import Sentinel, State

_NOTE_BYTES = 512
_TAGS = 2**15
_OF_TRANSFERS = ("gloo", "nccl", "connection closed", "connection reset")

Call = Mapping[str, int | str]
"""What a rank is about to do: the kind of loss, and all that decides what it sends."""

REMEDIES = {
    "kind": "Compute the same loss on every rank.",
    "pairs": "Give every rank the same number of pairs (drop the incomplete last batch), or pass `sizes`.",
    "width": "Build the same model on every rank.",
    "dtype": "Run every rank at the same precision.",
}


class RingError(RuntimeError):
    """Ranks of a group stopped hearing from one another; the message names who is silent, and at which step."""


@dataclass
class _Record:
    """What this process remembers of a group."""

    calls: int = 0
    kind: str = ""
    step: int | None = None
    waiting: bool = False
    agreed: dict[str, Call] = field(default_factory=dict)
    sentinel: Sentinel | None = None

    @property
    def now(self) -> int:
        """The step that the training loop has named, else the number of calls before this one."""
        return self.calls - 1 if self.step is None else self.step

    def state(self) -> State:
        """For other ranks."""
        return State(self.now, self.calls, self.kind, self.waiting)


_RECORDS: "weakref.WeakKeyDictionary[dist.ProcessGroup, _Record]" = weakref.WeakKeyDictionary()


def set_step(group: dist.ProcessGroup, step: int) -> None:
    """Name the training step under way, for error messages; without it the calls on the group are counted."""
    _record(group).step = step


def call_tag(group: dist.ProcessGroup | None) -> int:
    """A number for the transfers of this call, so that they never meet another call's (gloo; NCCL has no tags)."""
    if group is None or group.size() == 1:
        return 0
    record = _record(group)
    return zlib.crc32(f"{record.calls} {record.kind}".encode()) % _TAGS


def forget(group: dist.ProcessGroup | None) -> None:
    """Let the next call be a first one again; on all ranks at the same point, where another training begins."""
    if group is not None and group.size() > 1:
        _record(group).agreed.clear()


def report_fault(group: dist.ProcessGroup | None, error: BaseException) -> None:
    """Tell the other ranks that this one stops, and why, so that they do not have to find out."""
    if group is None or group.size() == 1:
        return
    record, text = _record(group), str(error).strip().splitlines() or [""]
    assert record.sentinel is not None
    record.sentinel.call(
        f"Rank {group.rank()} stopped at step {record.now} with {type(error).__name__}: {text[0][:300]}"
    )


def agree(group: dist.ProcessGroup | None, call: Call, device: torch.device, once: Call | None = None) -> None:
    """Make sure that this call fits those of the other ranks.

    The first call of a kind (``call["kind"]``) gathers all ranks' calls, 512 bytes each; later ones are compared with
    what was agreed, locally.

    Args:
        group: the ranks; with ``None`` or a group of one there is nobody to ask.
        call: equal on all ranks, or else.
        device: where the group communicates.
        once: compared at the first call only; may change later, alike on all ranks.

    Raises:
        ValueError: this rank differs from the others, or at the first call any rank does; the message names it.
        RingError: a rank did not come to the first call.
    """
    if group is None or group.size() == 1:
        return
    record, kind = _record(group), str(call["kind"])
    record.calls, record.kind = record.calls + 1, kind
    if kind not in record.agreed:
        calls = _gather(group, {**call, **(once or {})}, device)
        if any(other != calls[0] for other in calls):
            raise ValueError(_disagreement(calls, record.now))
        record.agreed[kind] = call
    elif call != record.agreed[kind]:
        message = _change(group.rank(), record.agreed[kind], call, record.now)
        assert record.sentinel is not None
        record.sentinel.call(message)
        raise ValueError(message)


@contextmanager
def naming_the_silent(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Turn a failed transfer into a :class:`RingError` that says which rank is to blame; other errors pass.

    Takes some seconds, and at most `2 * GRACE_S + 2`.
    """
    if group is None or group.size() == 1:
        yield
        return
    record = _record(group)
    record.waiting = True
    try:
        yield
    except RuntimeError as error:
        if not is_of_transfer(error):
            raise
        raise RingError(f"{_who_is_to_blame(record)} ({str(error).splitlines()[0][:200]})") from error
    finally:
        record.waiting = False


def is_of_transfer(error: BaseException) -> bool:
    """Whether torch.distributed failed; under gloo that is a plain ``RuntimeError`` with a place in its source."""
    if not isinstance(error, RuntimeError) or isinstance(error, torch.OutOfMemoryError | RingError):
        return False
    text = str(error).lower()
    return isinstance(error, dist.DistError) or any(word in text for word in _OF_TRANSFERS)


def _who_is_to_blame(record: _Record) -> str:
    assert record.sentinel is not None
    record.sentinel.call()
    return record.sentinel.conclusion() or (
        f"The ranks stopped hearing from one another at step {record.now}, and the store through which they met does "
        "not answer: its host, rank 0 unless a launcher keeps it, has died or stands still. Look at its output."
    )


def _record(group: dist.ProcessGroup) -> _Record:
    record = _RECORDS.get(group)
    if record is None:
        record = _RECORDS[group] = _Record()
        if group.size() > 1:
            # The group's own view of the store through which its ranks found each other.
            record.sentinel = Sentinel(_get_process_group_store(group), group.rank(), group.size(), record.state)
            record.sentinel.start()
            weakref.finalize(group, record.sentinel.stop)
    return record


def _gather(group: dist.ProcessGroup, call: Call, device: torch.device) -> list[Call]:
    note = json.dumps(call).encode()
    assert len(note) <= _NOTE_BYTES
    own = torch.frombuffer(bytearray(note.ljust(_NOTE_BYTES)), dtype=torch.uint8).to(device)
    gathered = own.new_empty(group.size() * _NOTE_BYTES)
    with naming_the_silent(group):
        dist.all_gather_into_tensor(gathered, own, group=group)
    return [json.loads(bytes(row)) for row in gathered.view(-1, _NOTE_BYTES).tolist()]


def _disagreement(calls: Sequence[Call], step: int) -> str:
    parts, remedies = [], []
    for name in dict.fromkeys(name for call in calls for name in call):
        values = [call.get(name) for call in calls]
        usual, count = Counter(values).most_common(1)[0]
        has_majority = 2 * count > len(values)
        odd = [f"rank {r} has {value}" for r, value in enumerate(values) if value != usual or not has_majority]
        if odd:
            parts.append(f"{name}: {f'expected {usual}, ' if has_majority else ''}{', '.join(odd)}")
            remedies.append(REMEDIES.get(name, f"Set `{name}` alike on every rank."))
    return f"The ranks do not make the same call at step {step}. {'; '.join(parts)}. {' '.join(remedies)}"


def _change(rank: int, agreed: Call, call: Call, step: int) -> str:
    names = [name for name in agreed if call.get(name) != agreed[name]]
    parts = [f"{name}: expected {agreed[name]}, got {call.get(name)}" for name in names]
    remedies = [REMEDIES.get(name, f"Keep `{name}` as it was.") for name in names]
    return (
        f"Rank {rank} left what all ranks agreed on at the first step, at step {step}. {'; '.join(parts)}. "
        f"{' '.join(remedies)}"
    )
