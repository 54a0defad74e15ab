"""A thread on every rank that answers when another rank asks who is still there, and so finds out who is to blame.

The rank itself may be waiting for a transfer, stuck in its own code, or dead; only the first two answer, and they say
which. While all is well each rank asks the store once a second whether anybody has called.
"""

import json
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from torch.distributed import Store  # type: ignore[attr-defined]  # public, but not re-exported

GRACE_S = 5.0  # to answer in, after a call
_ASK_S = 1.0
_POLL_S = 0.05
_KEY = "siglightning"


@dataclass(frozen=True)
class State:
    """Where a rank is.

    Attributes:
        step: the training step under way, or the calls before this one.
        calls: calls of a loss on the group, this one included.
        kind: of the newest call.
        waiting: in a transfer, and not in its own code.
    """

    step: int = 0
    calls: int = 0
    kind: str = ""
    waiting: bool = False


class Sentinel(threading.Thread):
    """Watches for a call; then all sentinels answer it, and each draws the same conclusion.

    Args:
        store: through which the ranks found each other; it outlives their connections.
        rank: of this process.
        size: number of ranks.
        state: where this rank is now.
    """

    def __init__(self, store: Store, rank: int, size: int, state: Callable[[], State]) -> None:
        super().__init__(daemon=True, name="siglightning-sentinel")
        self._store, self._rank, self._size, self._state = store, rank, size, state
        self._wake, self._is_over = threading.Event(), False
        self._conclusion: str | None = None
        self._to_tell: str | None = None
        self._told = threading.Event()

    def call(self, fault: str = "") -> None:
        """Ask all ranks where they are; with a ``fault``, tell them first that this rank is to blame, and why.

        The thread asks, and at most `GRACE_S` are spent waiting for it: where the link to the store is cut, whoever
        touches the store stands still.
        """
        self._to_tell = fault
        self._wake.set()
        if self.is_alive():
            self._told.wait(GRACE_S)

    def conclusion(self) -> str | None:
        """What the ranks found out, once somebody has called; ``None`` where the store does not answer in time."""
        self._wake.set()
        if self._told.is_set():  # else the thread stands still at the store
            self.join(2 * GRACE_S + 2 * _ASK_S)
        return self._conclusion

    def stop(self) -> None:
        """End the thread; at once unless it is answering a call."""
        self._is_over = True
        self._wake.set()
        if self.is_alive():
            self.join(_ASK_S)

    def run(self) -> None:
        """Ask once a second; after a call answer, conclude, and end."""
        try:
            while not self._tell() and not self._store.check([f"{_KEY}/call"]):
                self._wake.wait(_ASK_S)
                if self._is_over and self._to_tell is None:
                    return
            self._conclude()
        except RuntimeError:  # the store is gone: its host has ended, well or not
            return
        finally:
            self._told.set()

    def _tell(self) -> bool:
        """Pass on what this rank has to say; whether it has said something."""
        if self._to_tell is None:
            return False
        if not self._told.is_set():
            if self._to_tell:
                self._store.set(f"{_KEY}/fault/{self._rank}", self._to_tell)
            self._store.set(f"{_KEY}/call", "")
            self._told.set()
        return True

    def _conclude(self) -> None:
        self._store.set(f"{_KEY}/answer/{self._rank}", json.dumps(asdict(self._state())))
        self._await("answer", range(self._size))
        states = [self._answer_of(rank) for rank in range(self._size)]
        faults = [self._fault_of(rank) for rank in range(self._size)]
        self._conclusion = conclude(states, faults)
        self._store.set(f"{_KEY}/read/{self._rank}", "")
        if self._rank == 0:  # it may host the store, which must outlive the others' questions
            self._await("read", [rank for rank, state in enumerate(states) if state is not None])

    def _await(self, what: str, ranks: Sequence[int]) -> None:
        """Wait until all ranks have such a note or one of a fault, at most `GRACE_S`."""
        deadline = time.monotonic() + GRACE_S
        while time.monotonic() < deadline:
            self._tell()
            if all(self._has(what, rank) or self._has("fault", rank) for rank in ranks):
                return
            time.sleep(_POLL_S)

    def _has(self, what: str, rank: int) -> bool:
        return bool(self._store.check([f"{_KEY}/{what}/{rank}"]))

    def _answer_of(self, rank: int) -> State | None:
        key = f"{_KEY}/answer/{rank}"
        return State(**json.loads(self._store.get(key))) if self._store.check([key]) else None

    def _fault_of(self, rank: int) -> str:
        key = f"{_KEY}/fault/{rank}"
        return str(self._store.get(key).decode()) if self._store.check([key]) else ""


def conclude(states: Sequence[State | None], faults: Sequence[str]) -> str:
    """Who is to blame: whoever has said so, else whoever is dead, else stuck, else in another call.

    Args:
        states: of every rank; ``None`` where it did not answer.
        faults: what a rank has said of itself, or an empty text.
    """
    if any(faults):
        return " ".join(fault for fault in faults if fault)
    waiting = [state for state in states if state is not None and state.waiting]
    step = max((state.step for state in waiting), default=0)
    before = f"having finished step {step - 1}" if step else "not having finished any step"
    rest = f"The other ranks waited and have stopped. ({len(waiting)} of {len(states)} waited.)"
    dead = [rank for rank, state in enumerate(states) if state is None]
    if dead:
        return f"{_names(dead)} did not answer at step {step}, {before}: dead, or stopped from outside. {rest}"
    stuck = [rank for rank, state in enumerate(states) if state is not None and not state.waiting]
    if stuck:
        return (
            f"{_names(stuck)} did not come to step {step}, {before}: alive, but stuck in its own code or slower than "
            f"the time-out. {rest}"
        )
    calls = [f"rank {rank}: call {state.calls}, {state.kind}" for rank, state in enumerate(waiting)]
    if len({(state.calls, state.kind) for state in waiting}) > 1:
        return (
            f"The ranks wait in different calls at step {step} ({'; '.join(calls)}). Every rank must call the loss "
            "equally often and in the same order, in evaluation, too."
        )
    return (
        f"A transfer failed at step {step}, though all ranks wait for it: the link between two of them broke, or is "
        "slower than the time-out. Look for the first error in the ranks' outputs."
    )


def _names(ranks: Sequence[int]) -> str:
    return f"Rank {ranks[0]}" if len(ranks) == 1 else f"Ranks {', '.join(map(str, ranks))}"
