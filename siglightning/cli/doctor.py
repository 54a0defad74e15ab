"""``siglightning doctor``: the configuration of a run, built as ``fit`` builds it, and examined instead of trained."""

import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from typing_extensions import override

from siglightning.cli.advertisements import silence_advertisements
from siglightning.cli.app import SigCLI, refuse_at_once
from siglightning.cli.checks import require_one_beginning
from siglightning.cli.launch import as_launched
from siglightning.cli.length import resolve_length
from siglightning.cli.parser import restrict_imports
from siglightning.cli.session import USER_ERRORS, Session, own_error
from siglightning.commands.doctor import CHECKS, Case, Origin, examine
from siglightning.commands.doctor.origin import of_begun, of_network
from siglightning.commands.doctor.report import Report
from siglightning.models.interop import load_two_tower, require_source
from siglightning.runtime.checkpoint import require_resumable, require_same_model
from siglightning.runtime.exits import ExitCode
from siglightning.runtime.files import write_text
from siglightning.runtime.processes import is_first_process, notice
from siglightning.tasks.initial_weights import begin_from

HELP = """siglightning doctor: look for what would go wrong in a run, on its data and devices

options of its own, before those of fit:
  --checkpoint PATH   weights to examine in the place of the run's: a run, a file, a folder, hf:NAME, open_clip:NAME
  --json FILE         the findings for programs, and pictures beside it
  --samples N         pictures of each set to look at (1,000)
  --strict            warnings count as errors
exit code: 0 nothing or warnings, 2 an error or a configuration that fit would refuse, 1 a bug
"""


@dataclass(frozen=True)
class DoctorOptions:
    """What only ``doctor`` takes.

    Attributes:
        checkpoint: whose weights to examine, in the place of those that the run begins with; a run or a model of
            another library, see :func:`siglightning.tasks.initial_weights.begin_from`.
        report: file for the findings as JSON; pictures go beside it.
        samples: pictures of each set to look at.
        strict: warnings count as errors.
        debug: let errors through.
    """

    checkpoint: str | None = None
    report: str | None = None
    samples: int = 1000
    strict: bool = False
    debug: bool = False


def run_doctor(arguments: Sequence[str], trusted: Sequence[str], options: DoctorOptions) -> ExitCode:
    """Examine a run and print what was found.

    Args:
        arguments: options of ``fit``.
        trusted: packages whose classes the configuration may name, beside the usual ones.
        options: of this command.

    Returns:
        2 for an error among the findings or a configuration that ``fit`` would refuse, 1 for a bug, 130 where the
        keyboard ended it, else 0.
    """
    if not is_first_process():  # of a launcher that starts as many as the run would have
        return ExitCode.DONE
    if {"-h", "--help"} & set(arguments):
        print(HELP)
    with tempfile.TemporaryDirectory(prefix="siglightning-") as folder, untouched():
        started = time.monotonic()
        try:
            _require_writable(options.report)
            restrict_imports(trusted)
            case = DoctorCLI(arguments, Path(folder), options).case()
        except SystemExit as error:  # the parser has said what is wrong, or was asked for help
            refused = "the parser refuses an argument or a configuration; standard error says which"
            return _refuse(options, refused) if error.code else ExitCode.DONE
        except (*USER_ERRORS, torch.OutOfMemoryError) as error:
            if options.debug:
                traceback.print_exception(error)
            told = f"{own_error(error)}"
            if isinstance(error, torch.OutOfMemoryError):
                told = f"the weights alone do not fit the device. Take a smaller model or a larger device. ({told})"
            print(f"error: {told}", file=sys.stderr)
            return _refuse(options, told)
        except KeyboardInterrupt:
            return ExitCode.INTERRUPTED
        except Exception as error:
            traceback.print_exception(error)
            _refuse(options, f"{type(error).__name__}: {error}")
            return ExitCode.BUG
        try:
            return _examine(Report(case, time.monotonic() - started), options)
        except KeyboardInterrupt:
            return ExitCode.INTERRUPTED


def _examine(report: Report, options: DoctorOptions) -> ExitCode:
    """Print findings as they come; the file holds what there is of them at any time."""
    print(report.head(), flush=True)
    for result in examine(report.case, CHECKS, debug=options.debug):
        print(report.add(result), end="", flush=True)
        _write(options, report.values() | {"finished": len(report.results) == len(CHECKS)})
    print(report.foot())
    return ExitCode.BAD_INPUT if report.level == "error" or (options.strict and report.level != "ok") else ExitCode.DONE


def _refuse(options: DoctorOptions, why: str) -> ExitCode:
    """Leave word for programs, too, rather than the report of an earlier configuration."""
    if options.report is not None and _can_write(Path(options.report)):
        _write(options, {"level": "error", "errors": 1, "warnings": 0, "refused": why, "checks": [], "finished": False})
    return ExitCode.BAD_INPUT


def _write(options: DoctorOptions, values: dict[str, Any]) -> None:
    if options.report is not None:
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False)
        write_text(Path(options.report), text + "\n")


@contextmanager
def untouched() -> Iterator[None]:
    """Leave generators of random numbers, and what Lightning puts into the environment, as they were."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_devices = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    devices = torch.cuda.get_rng_state_all() if on_devices else None
    environment = dict(os.environ)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if devices is not None:
            torch.cuda.set_rng_state_all(devices)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)


class DoctorCLI(SigCLI):
    """Builds what ``fit`` would build, with the same seed, and takes nothing: no run directory, no logger, no process.

    What ``fit`` refuses before its first step is refused here, too, in the same words.

    Args:
        arguments: options of ``fit``.
        scratch: a folder that is deleted afterwards, in the place of the run directory.
        options: of this command.
    """

    def __init__(self, arguments: Sequence[str], scratch: Path, options: DoctorOptions) -> None:
        self._scratch_folder, self._options = scratch, options
        super().__init__(Session(["fit", *arguments], ["doctor", *arguments]))

    @staticmethod
    @override
    def subcommands() -> dict[str, set[str]]:
        return {"fit": SigCLI.subcommands()["fit"]}

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config.fit
        refuse_at_once(config, self.session.command)
        if self._options.checkpoint is not None:
            require_source(self._options.checkpoint, "--checkpoint")
        resolve_length(config)
        self.session.look(config)
        if self.session.start.checkpoint is None:
            require_one_beginning(config.init_from, config.ckpt_path)
        self._keep_config(config)
        self._tell_changes(config)
        config.trainer.default_root_dir = str(self._scratch_folder)
        config.trainer.logger = False

    @override
    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        silence_advertisements()
        config |= {"callbacks": None, "enable_progress_bar": False, "enable_checkpointing": False}
        config |= as_launched(config)
        return LightningCLI._instantiate_trainer(self, config, [])

    @override
    def after_instantiate_classes(self) -> None:
        for part in (self.datamodule, self.model):
            if hasattr(part, "check_processes"):
                part.check_processes(self.trainer)
        self._origin = self._weights()

    @override
    def _run_subcommand(self, subcommand: str) -> None:
        """Nothing: there is no run."""

    def case(self) -> Case:
        """The run, set up as ``fit`` sets it up.

        Raises:
            ValueError: it would be refused.
        """
        trainer, task, data, config = self.trainer, self.model, self.datamodule, self.config.fit
        trainer.state.fn, trainer.training = TrainerFn.FITTING, True
        trainer._data_connector.attach_datamodule(task, data)  # as Trainer.fit does; it has no public name
        trainer.strategy.connect(task)
        task.trainer = trainer
        data.prepare_data()
        data.setup("fit")
        task.setup("fit")
        task.configure_model()
        task.to(trainer.strategy.root_device)
        trainer.precision_plugin.convert_module(task)
        assert self.session.run_dir is not None  # `look` has decided it
        report = self._options.report
        return Case(
            task,
            data,
            trainer,
            self.session.run_dir.root,
            config.checkpoint.keep_last if _keeps_checkpoints(config.trainer) else 0,
            self._origin,
            self._options.samples,
            None if report is None else Path(report).with_suffix(""),
            self.session.start.global_step if self.session.start.checkpoint else 0,
        )

    def _weights(self) -> Origin:
        """Load the weights that are examined: those asked for, else those that the run begins or goes on with."""
        config, asked = self.config.fit, self._options.checkpoint
        unfinished = self.session.start.checkpoint or config.ckpt_path
        if asked is None and unfinished is not None:
            require_resumable(Path(unfinished))
            if not is_overridden("configure_model", self.model):
                require_same_model(self.model.state_dict(), Path(unfinished))
        chosen = asked or unfinished or config.init_from
        if chosen is None:
            return _as_built(config)
        begun = begin_from(self.model, chosen)
        notice("\n".join(begun.lines()))
        return of_begun(self.model, chosen, begun, _pretrained(config))


def _as_built(config: Any) -> Origin:
    """Of a model that no weights were put into afterwards; a network can bring those of a checkpoint itself."""
    network = config.model.get("init_args", {}).get("network")
    if str(getattr(network, "class_path", "")).rpartition(".")[2] != load_two_tower.__name__:
        return Origin(pretrained=_pretrained(config))
    given = network.init_args
    return of_network(given.source, given.get("kind"), given.get("architecture"))


def _keeps_checkpoints(trainer: Any) -> bool:
    return trainer.enable_checkpointing is not False and not trainer.fast_dev_run


def _pretrained(config: Any) -> frozenset[str]:
    """Towers of a configuration that bring weights of their own."""
    network = config.model.get("init_args", {}).get("network")
    settings = getattr(network, "init_args", None) or {}
    towers = ("image_tower", "text_tower")
    brings = (getattr(settings.get(tower), "pretrained", False) for tower in towers)
    named = (str(getattr(settings.get(tower), "name", "")).startswith("package:") for tower in towers)
    return frozenset(name for name, own, always in zip(towers, brings, named, strict=True) if own or always)


def _require_writable(report: str | None) -> None:
    if report is not None and not _can_write(Path(report)):
        raise ValueError(f"--json expects a file in a folder that is there and can be written, got {report}.")


def _can_write(report: Path) -> bool:
    return report.parent.is_dir() and not report.is_dir() and os.access(report.parent, os.W_OK)
