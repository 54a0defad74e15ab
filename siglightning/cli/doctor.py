"""``siglightning doctor``: the configuration of a run, built as ``fit`` builds it, and examined instead of trained."""

import json
import os
import random
import sys
import tempfile
import time
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

from siglightning.cli.app import SigCLI, refuse_at_once, silence_advertisements
from siglightning.cli.checks import require_one_beginning
from siglightning.cli.length import resolve_length
from siglightning.cli.parser import restrict_imports
from siglightning.cli.session import USER_ERRORS, Session, own_error
from siglightning.commands.doctor import CHECKS, Case, Origin, examine
from siglightning.commands.doctor.report import Report
from siglightning.runtime.checkpoint import require_resumable, require_same_model
from siglightning.runtime.exits import ExitCode
from siglightning.runtime.files import write_text
from siglightning.runtime.processes import is_first_process, notice
from siglightning.tasks.initial_weights import begin_from


@dataclass(frozen=True)
class DoctorOptions:
    """What only ``doctor`` takes.

    Attributes:
        checkpoint: file or run directory whose weights to examine, in the place of those that the run begins with.
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
        2 for an error among the findings or a configuration that ``fit`` would refuse, else 0.
    """
    if not is_first_process():  # of a launcher that starts as many as the run would have
        return ExitCode.DONE
    with tempfile.TemporaryDirectory(prefix="siglightning-") as folder, untouched():
        started = time.monotonic()
        try:
            restrict_imports(trusted)
            case = DoctorCLI(arguments, Path(folder), options).case()
        except SystemExit as error:  # the parser has said what is wrong
            return ExitCode.BAD_INPUT if error.code else ExitCode.DONE
        except USER_ERRORS as error:
            if options.debug:
                raise
            print(f"error: {own_error(error)}", file=sys.stderr)
            return ExitCode.BAD_INPUT
        report = Report(case, time.monotonic() - started)
        print(report.head(), flush=True)
        for result in examine(case, CHECKS, debug=options.debug):
            print(report.add(result), end="", flush=True)
    print(report.foot())
    if options.report is not None:
        write_text(Path(options.report), json.dumps(report.values(), indent=2, ensure_ascii=False) + "\n")
    return ExitCode.BAD_INPUT if report.level == "error" or (options.strict and report.level != "ok") else ExitCode.DONE


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

    @override
    def before_instantiate_classes(self) -> None:
        config = self.config.fit
        if self._options.report is not None:
            _require_writable(Path(self._options.report))
        refuse_at_once(config)
        resolve_length(config)
        self.session.look(config)
        if self.session.start.checkpoint is None:
            require_one_beginning(config.init_from, config.ckpt_path)
        config.trainer.default_root_dir = str(self._scratch_folder)
        config.trainer.logger = False

    @override
    def _instantiate_trainer(self, config: dict[str, Any], callbacks: list[Callback]) -> Trainer:
        silence_advertisements()
        config |= {"callbacks": None, "enable_progress_bar": False, "enable_checkpointing": False}
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
            config.checkpoint.keep_last if config.trainer.enable_checkpointing is not False else 0,
            self._origin,
            self._options.samples,
            None if report is None else Path(report).with_suffix(""),
            self.session.start.global_step if self.session.start.checkpoint else 0,
        )

    def _weights(self) -> Origin:
        """Load the weights that are examined: those asked for, else those that the run begins or goes on with."""
        config, start = self.config.fit, self.session.start
        pretrained = _pretrained(config)
        whole = start.checkpoint or config.ckpt_path
        chosen = self._options.checkpoint or whole or config.init_from
        if chosen is None:
            return Origin(pretrained=pretrained)
        if chosen is whole:
            require_resumable(Path(whole))
            if not is_overridden("configure_model", self.model):
                require_same_model(self.model.state_dict(), Path(whole))
        begun = begin_from(self.model, chosen)
        notice("\n".join(begun.lines()))
        return Origin(
            begun.checkpoint, begun.global_step, frozenset(begun.taken), _record(begun.checkpoint), pretrained
        )


def _record(checkpoint: Path) -> dict[str, Any]:
    """``model.json`` of the run that a checkpoint lies in; empty where there is none."""
    try:
        record = json.loads((checkpoint.parent.parent / "model.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record if isinstance(record, dict) else {}


def _pretrained(config: Any) -> frozenset[str]:
    """Towers of a configuration that bring weights of their own."""
    network = config.model.get("init_args", {}).get("network")
    settings = getattr(network, "init_args", None) or {}
    towers = ("image_tower", "text_tower")
    brings = (getattr(settings.get(tower), "pretrained", False) for tower in towers)
    named = (str(getattr(settings.get(tower), "name", "")).startswith("package:") for tower in towers)
    return frozenset(name for name, own, always in zip(towers, brings, named, strict=True) if own or always)


def _require_writable(report: Path) -> None:
    if not report.parent.is_dir() or report.is_dir() or not os.access(report.parent, os.W_OK):
        raise ValueError(f"--json expects a file in a folder that is there and can be written, got {report}.")
