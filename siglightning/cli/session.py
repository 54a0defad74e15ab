"""One command from its first to its last moment: run directory, errors, exit code."""

import os
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer

from siglightning.cli.configs import name_of_run
from siglightning.cli.disk import disk_remedy, is_of_the_disk
from siglightning.cli.memory import is_out_of_memory, memory_remedy
from siglightning.cli.parser import restrict_imports
from siglightning.cli.workers import is_lost_worker, worker_remedy
from siglightning.runtime.checkpoint import SUFFIX
from siglightning.runtime.exits import ExitCode, ExitRecord, NotFiniteError, read_exit
from siglightning.runtime.processes import is_first_process, notice, process_rank
from siglightning.runtime.rundir import Claim, RunDir, claim
from siglightning.runtime.signals import StoppedError, StopSignals
from siglightning.runtime.start import Limits, Start, decide_start, find_start
from siglightning.runtime.wandb_logger import finish_wandb

FEATURES = "features.json"  # what `embed` writes
# Before training begins these say that the user's configuration or input is at fault; later they are our bugs.
USER_ERRORS = (
    ValueError,
    FileNotFoundError,
    PermissionError,
    NotADirectoryError,
    IsADirectoryError,
    ModuleNotFoundError,
    MisconfigurationException,
)


class Session:
    """What one command knows of its run directory and of how far it got.

    Attributes:
        arguments: of the command line, for the parser.
        command: the command line as it was typed, for the record.
        began: whether a batch was processed; from then on an error is not the configuration's.
        run_dir: where this command writes; ``None`` until it is decided, and for ``fast_dev_run``.
        start: what the start in ``run_dir`` means.
        trainer: the Trainer, once it is built.
        signals: that ask it to stop.
    """

    def __init__(self, arguments: Sequence[str], command: Sequence[str]) -> None:
        self.arguments = list(arguments)
        self.command = list(command)
        self.began = False
        self.run_dir: RunDir | None = None
        self.start = Start()
        self.trainer: Trainer | None = None
        self.signals = StopSignals()
        self._goes_on = False
        self._claim: Claim | None = None
        self._started_s = time.monotonic()

    def open(self, command: str, config: Any) -> None:
        """Decide where this command writes, and take that directory.

        Args:
            command: ``fit``, ``embed`` or a name of an evaluation.
            config: the command's configuration; ``run_dir`` is filled in.

        Raises:
            ValueError: the directory may not be used; the message says how to go on.
        """
        run_dir = self._name(config, "embeddings" if command == "embed" else "runs")
        if config.trainer.fast_dev_run:
            return
        self._goes_on = command in ("fit", "embed")
        if self._goes_on and was_stopped_before_restart(run_dir):
            raise StoppedError(f"a signal before torchrun restarted it, as {run_dir.exit} says")
        if command == "embed":
            has_features = (run_dir.root / FEATURES).is_file()
            if is_first_process() and not run_dir.is_unused() and not has_features:
                raise ValueError(
                    f"Expected a new directory, or one with features, got {run_dir.root}, which holds something else. "
                    "Choose another --run_dir."
                )
            self._take(run_dir)
        elif command != "fit":
            self._take(run_dir.evaluation(command))
        elif is_first_process():
            # Look before locking, for a clear refusal, and under the lock, for the truth.
            limits = Limits(config.trainer.max_steps, config.trainer.max_epochs)
            if run_dir.root.is_dir():
                decide_start(run_dir, config.resume, limits)
            self._take(run_dir)
            self.start = decide_start(run_dir, config.resume, limits)
        else:
            self.run_dir = run_dir
            self.start = find_start(run_dir, config.resume)

    def look(self, config: Any) -> None:
        """Decide what ``fit`` would do in its directory; nothing is taken or written.

        Raises:
            ValueError: as :meth:`open`, but for a directory that cannot be written.
        """
        self.run_dir = self._name(config, "runs")
        if not config.trainer.fast_dev_run:
            limits = Limits(config.trainer.max_steps, config.trainer.max_epochs)
            self.start = decide_start(self.run_dir, config.resume, limits)

    def _name(self, config: Any, parent: str) -> RunDir:
        config.run_dir = config.run_dir or str(Path(parent) / (name_of_run(self.arguments) or "run"))
        return RunDir(Path(config.run_dir))

    def _take(self, run_dir: RunDir) -> None:
        self.run_dir = run_dir
        if is_first_process():
            self._claim = claim(run_dir)

    def training_begins(self) -> None:
        """From now on an error is not the configuration's, and what the last start left in ``exit.json`` is past."""
        self.began = True
        if self._claim is not None and self.run_dir is not None:
            self.run_dir.exit.unlink(missing_ok=True)

    def code_of_stop(self, error: StoppedError) -> ExitCode:
        """How a command ends that was asked to: 75 where the same command goes on from what it has left."""
        if self._goes_on and self.run_dir is not None:
            kept = self.run_dir.checkpoints.glob(f"step-*{SUFFIX}"), self.run_dir.root.glob(FEATURES)
            if any(path for paths in kept for path in paths):
                return ExitCode.PREEMPTED
        return ExitCode.INTERRUPTED if error.signal_name == "SIGINT" else ExitCode.TERMINATED

    def wrote(self, *paths: Path) -> None:
        """Remember files that this start added, so that they go if it fails before any work."""
        if self._claim is not None:
            self._claim.written += paths

    def record(self, code: ExitCode, message: str = "") -> None:
        """Write ``exit.json``, but for a user's error, which leaves no trace."""
        if self._claim is None or self.run_dir is None or code == ExitCode.BAD_INPUT:
            return
        step = self.trainer.global_step if self.trainer is not None else self.start.global_step
        try:
            ExitRecord.of(code, step, time.monotonic() - self._started_s, message).write(self.run_dir.exit)
        except OSError as error:
            print(f"warning: exit.json was not written: {error}", file=sys.stderr)

    def close(self, code: ExitCode) -> None:
        """Let the directory go; after a user's error, remove what this start added."""
        if self._claim is None:
            return
        if code == ExitCode.BAD_INPUT:
            self._claim.withdraw()
        else:
            self._claim.release()


def was_stopped_before_restart(run_dir: RunDir) -> bool:
    """Whether torchrun has started this process again although the attempt before it was asked to stop.

    To torchrun every exit code but 0 is a failure, and it restarts what has failed.
    """
    is_restarted = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") != "0"
    record = read_exit(run_dir.exit) if is_restarted else None
    return record is not None and record.get("exit_code") == ExitCode.PREEMPTED


def run(arguments: Sequence[str], command: Sequence[str], trusted: Sequence[str], *, debug: bool) -> int:
    """Run a command of LightningCLI and translate how it ends into an exit code.

    Args:
        arguments: command and options for the parser.
        command: the command line as it was typed.
        trusted: packages whose classes the configuration may name, beside the usual ones.
        debug: show the traceback of user errors, too.

    Returns:
        See :class:`~siglightning.runtime.exits.ExitCode`.
    """
    session = Session(arguments, command)
    code, message = ExitCode.BUG, "ended without a result"
    session.signals.install()
    try:
        code, message = _run(session, trusted, debug)
    finally:
        session.signals.is_over = True
        session.record(code, message)  # first: W&B may wait for its server as long as it likes
        finish_wandb(int(code))  # it writes into the run directory, which a refused start removes
        session.close(code)
        session.signals.restore()
    return int(code)


def _run(session: Session, trusted: Sequence[str], debug: bool) -> tuple[ExitCode, str]:
    from siglightning.cli.app import SigCLI
    from siglightning.distributed.watch import RingError

    try:
        restrict_imports(trusted)
        SigCLI(session)
    except StoppedError as error:
        return _report_stop(session, error)
    except (KeyboardInterrupt, SystemExit) as error:
        return _code_of_exit(error, session)
    except NotFiniteError as error:
        return _report(ExitCode.NOT_FINITE, error, show_traceback=debug)
    except RingError as error:
        return _report(ExitCode.HANG, error, show_traceback=debug)
    except USER_ERRORS as error:
        code = ExitCode.BUG if session.began else ExitCode.BAD_INPUT
        return _report(code, error, show_traceback=debug or session.began)
    except Exception as error:
        if is_out_of_memory(error):
            code = ExitCode.BUG if session.began else ExitCode.BAD_INPUT
            return _report(code, MemoryError(memory_remedy(error)), show_traceback=debug)
        if is_lost_worker(error):
            return _report(ExitCode.BUG, RuntimeError(worker_remedy(error)), show_traceback=debug)
        if is_of_the_disk(error):
            code = ExitCode.BUG if session.began else ExitCode.BAD_INPUT
            return _report(code, OSError(disk_remedy(error, session.run_dir)), show_traceback=debug)
        return _report(ExitCode.BUG, error, show_traceback=True)
    return ExitCode.DONE, ""


def _report_stop(session: Session, error: StoppedError) -> tuple[ExitCode, str]:
    code = session.code_of_stop(error)
    if code == ExitCode.PREEMPTED:
        notice(f"{error}; the same command goes on from there (exit code {int(code)}).")
    return code, str(error)


def _code_of_exit(error: BaseException, session: Session) -> tuple[ExitCode, str]:
    # The key is a signal, see above; where code raises KeyboardInterrupt, Lightning makes SystemExit(1) of it.
    was_interrupted = session.trainer is not None and session.trainer.interrupted
    if isinstance(error, KeyboardInterrupt) or was_interrupted:
        return ExitCode.INTERRUPTED, "interrupted from the keyboard"
    status = error.code if isinstance(error, SystemExit) else 1
    if status in (0, None):
        return ExitCode.DONE, ""
    return (ExitCode.BAD_INPUT, "") if status == 2 else (ExitCode.BUG, f"exit {status}")


def _report(code: ExitCode, error: BaseException, *, show_traceback: bool) -> tuple[ExitCode, str]:
    if show_traceback:
        traceback.print_exception(error)
    process = "" if is_first_process() else f"[process {process_rank()}] "
    error = own_error(error)
    text = str(error).strip() or type(error).__name__
    if not show_traceback or code != ExitCode.BUG:
        sys.stderr.write(f"error: {process}{text}\n")  # at once: other processes report on the same terminal
        sys.stderr.flush()
    return code, f"{type(error).__name__}: {text}"


def own_error(error: BaseException) -> BaseException:
    """The error of a constructor, out of the parser's report that no type of a union fits."""
    while error.__cause__ is not None and "against any of the Union subtypes" in str(error):
        error = error.__cause__
    return error
