"""Signals that ask a run to stop: the first one is remembered, the second one ends the process at once."""

import os
import signal
import threading
from collections.abc import Callable
from types import FrameType
from typing import Any

# What schedulers send before they take a machine away (SIGTERM; Slurm as asked for: SIGUSR1), and Ctrl-C.
STOPPING = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)


class StoppedError(BaseException):
    """A run ends because it was asked to.

    No ``Exception``: nothing that mends errors, of ours or of a library, may take it for one.

    Attributes:
        signal_name: such as ``SIGTERM``, or of another process.
    """

    def __init__(self, signal_name: str) -> None:
        super().__init__(f"Stopped by {signal_name}")
        self.signal_name = signal_name


class StopSignals:
    """Takes the stopping signals of this process over.

    Attributes:
        received: the first one's name; empty while there was none.
        waits_for_step: whether the signal is only remembered, since a training loop looks for it; otherwise
            :class:`StoppedError` is raised wherever the main thread is.
        is_over: whether the process is ending already and needs no more signals: torchrun sends one to all processes
            as soon as the first has ended.
    """

    def __init__(self) -> None:
        self.received = ""
        self.waits_for_step = self.is_over = False
        self._pid = os.getpid()
        self._before: dict[int, Callable[[int, FrameType | None], Any] | int | None] = {}

    def install(self) -> None:
        """Take the signals over; only the main thread can."""
        if threading.current_thread() is not threading.main_thread() or self._before:
            return
        for number in STOPPING:
            self._before[number] = signal.signal(number, self._handle)

    def stop(self) -> StoppedError:
        """The error to raise when it is time; later signals change nothing."""
        self.is_over = True
        return StoppedError(self.received or "a signal to another process")

    def restore(self) -> None:
        """Give them back to whoever had them."""
        before, self._before = self._before, {}
        for number, handler in before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if self.is_over or os.getpid() != self._pid:  # a loading process, which Ctrl-C reaches, too: it is still needed
            return
        if self.received:
            _say(f"{name} again: leaving at once.")
            os._exit(128 + number)
        self.received = name
        if not self.waits_for_step:
            raise self.stop()
        _say(f"{name}: saving and stopping after the step under way; once more leaves at once.")


def _say(text: str) -> None:
    os.write(2, f"\n{text}\n".encode())  # print() may be what was interrupted
