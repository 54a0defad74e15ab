"""Lightning's launcher of local processes, with patience: when one fails, the others have time to say what happened.

Lightning's own kills all local processes with SIGKILL within five seconds of the first failure: before the ring has
found out who failed, and before this process has written how the run ended.
"""

import atexit
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from lightning.fabric.utilities.distributed import _set_num_threads_if_needed
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from typing_extensions import override

from siglightning.distributed.sentinel import GRACE_S

PATIENCE_S = 3 * GRACE_S  # two waits of the sentinels, and one for writing
_POLL_S = 1.0


class PatientLauncher(_SubprocessScriptLauncher):
    """Starts one process a device; none of them outlives this one, and this one no failure for long."""

    @override
    def launch(self, function: Callable[..., Any], *args: Any, trainer: Any = None, **kwargs: Any) -> Any:
        """Start the other processes where no cluster has done so, then call the function."""
        self.cluster_environment.validate_settings(num_devices=self.num_processes, num_nodes=self.num_nodes)
        if not self.cluster_environment.creates_processes_externally:
            self._call_children_scripts()
            threading.Thread(target=_watch, args=(self.procs,), daemon=True, name="child-process-watch").start()
            atexit.register(_end, self.procs)
        _set_num_threads_if_needed(num_processes=self.num_processes)
        return function(*args, **kwargs)


def _watch(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    """Kill what is left, this process too, when it has not ended by itself some time after a child failed."""
    while not any(child.poll() for child in children):
        time.sleep(_POLL_S)
    time.sleep(PATIENCE_S)
    for child in children:
        child.kill()
    os.kill(os.getpid(), signal.SIGKILL)


def _end(children: Sequence["subprocess.Popen[bytes]"]) -> None:
    """At the end of this process: children that do not end, too, are stuck and are killed."""
    deadline = time.monotonic() + PATIENCE_S
    while any(child.poll() is None for child in children) and time.monotonic() < deadline:
        time.sleep(_POLL_S / 10)
    for child in children:
        child.kill()  # does nothing to one that has ended
        child.wait()
