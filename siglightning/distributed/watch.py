"""Ranks that share a loss: do they send what the others expect, and who is to blame when nothing arrives?

Before the first call all ranks exchange what they are about to send (one all-gather of 512 bytes); from then on each
checks its own call against that, without communication. So a rank that differs ends with an error instead of a hang.

When a transfer fails, a rank cannot tell who failed: the neighbours of a silent rank time out, close their
connections, and so everybody blames somebody else. Therefore each rank that gives up writes its name into the store
through which the group met; whoever has not done so within `GRACE_S` seconds is the one that is dead or stuck. The
store outlives the group's broken connections, tells all ranks and not only one, and costs nothing while all is well,
which a control group with a barrier would not.
"""

import json
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]  # public, but not re-exported
from torch.distributed.distributed_c10d import _get_process_group_store

GRACE_S = 5.0  # to find out who is silent, after the group's own time-out
_POLL_S = 0.05
_NOTE_BYTES = 512
_KEY = "siglightning"

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
    step: int | None = None
    agreed: dict[str, Call] = field(default_factory=dict)

    @property
    def now(self) -> int:
        """The step that the training loop has named, else the number of calls before this one."""
        return self.calls - 1 if self.step is None else self.step


_RECORDS: "WeakKeyDictionary[dist.ProcessGroup, _Record]" = WeakKeyDictionary()


def set_step(group: dist.ProcessGroup, step: int) -> None:
    """Name the training step under way, for error messages; without it the calls on the group are counted."""
    _record(group).step = step


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
    record.calls += 1
    if kind not in record.agreed:
        calls = _gather(group, {**call, **(once or {})}, device)
        if any(other != calls[0] for other in calls):
            raise ValueError(_disagreement(calls, record.now))
        record.agreed[kind] = call
    elif call != record.agreed[kind]:
        message = _change(group.rank(), record.agreed[kind], call, record.now)
        _store(group).set(f"{_KEY}/fault/{group.rank()}", message)
        raise ValueError(message)


@contextmanager
def naming_the_silent(group: dist.ProcessGroup | None) -> Iterator[None]:
    """Turn a failed transfer into a :class:`RingError` that says which rank is to blame.

    Takes up to `GRACE_S` seconds; a process that hosts the store waits as long for the others to read it.
    """
    try:
        yield
    except RuntimeError as error:
        if group is None or isinstance(error, torch.OutOfMemoryError):
            raise
        raise RingError(f"{_find_the_silent(group)} ({str(error).splitlines()[0][:200]})") from error


def _record(group: dist.ProcessGroup) -> _Record:
    return _RECORDS.setdefault(group, _Record())


def _store(group: dist.ProcessGroup) -> Store:
    """The store through which the group's ranks found each other; its keys are the group's own."""
    return _get_process_group_store(group)


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
        usual = Counter(values).most_common(1)[0][0]
        odd = [f"rank {rank} has {value}" for rank, value in enumerate(values) if value != usual]
        if odd:
            parts.append(f"{name}: expected {usual}, {', '.join(odd)}")
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


def _find_the_silent(group: dist.ProcessGroup) -> str:
    step, rank, ranks = _record(group).now, group.rank(), range(group.size())
    try:
        store = _store(group)
        store.set(f"{_KEY}/stopped/{rank}", str(step))
        faults = _await(store, "stopped", ranks)
        message = _verdict(store, step, ranks, faults)
        store.set(f"{_KEY}/read/{rank}", "")
        if rank == 0:  # it may host the store, which must outlive the others' questions
            _await(store, "read", [other for other in ranks if _has(store, "stopped", other)])
        return message
    except RuntimeError:
        return (
            f"The ranks stopped hearing from one another at step {step}, and the store through which they met is gone: "
            f"its host, rank 0 unless a launcher keeps it, has died first. Look at its output. (This is rank {rank}.)"
        )


def _await(store: Store, what: str, ranks: Sequence[int]) -> list[int]:
    """Wait until all ranks have a note of this kind or of a fault, at most `GRACE_S`; returns those with a fault."""
    deadline = time.monotonic() + GRACE_S
    while time.monotonic() < deadline:
        if all(_has(store, what, rank) or _has(store, "fault", rank) for rank in ranks):
            break
        time.sleep(_POLL_S)
    return [rank for rank in ranks if _has(store, "fault", rank)]


def _has(store: Store, what: str, rank: int) -> bool:
    return bool(store.check([f"{_KEY}/{what}/{rank}"]))


def _verdict(store: Store, step: int, ranks: Sequence[int], faults: Sequence[int]) -> str:
    if faults:
        return " ".join(store.get(f"{_KEY}/fault/{rank}").decode() for rank in faults)
    silent = [rank for rank in ranks if not _has(store, "stopped", rank)]
    if not silent:
        return (
            f"A transfer failed at step {step}, though all ranks answer: the link between two of them broke, or one "
            "needed longer than the time-out. Look for the first error in the ranks' outputs."
        )
    names = f"Rank {silent[0]}" if len(silent) == 1 else f"Ranks {', '.join(map(str, silent))}"
    before = f"finished step {step - 1}" if step else "not finished any step"
    return (
        f"{names} did not answer at step {step}, having {before}: dead, stuck, or slower than the time-out. The other "
        f"{len(ranks) - len(silent)} of {len(ranks)} ranks waited and have stopped. Look at the output of "
        f"{names.lower()}."
    )
