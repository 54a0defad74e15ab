"""What a start in a run directory means: a new run, a resume, or a refusal."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from siglightning.runtime.checkpoint import newest_intact
from siglightning.runtime.exits import STATUS, ExitCode, read_exit
from siglightning.runtime.rundir import ResumeMode, RunDir


@dataclass(frozen=True)
class Limits:
    """When training ends, as the configuration says.

    Attributes:
        max_steps: optimizer steps; -1: no limit.
        max_epochs: epochs; ``None`` or -1: no limit.
    """

    max_steps: int = -1
    max_epochs: int | None = None

    @classmethod
    def of_config(cls, path: Path) -> "Limits":
        """Read the limits from a saved configuration."""
        trainer = (yaml.safe_load(path.read_text()) or {}).get("trainer") or {}
        return cls(trainer.get("max_steps", -1), trainer.get("max_epochs"))

    def allow_more_than(self, other: "Limits") -> bool:
        """Whether training may go on where ``other`` ended it."""
        return _bound(self.max_steps) > _bound(other.max_steps) or _bound(self.max_epochs) > _bound(other.max_epochs)


def _bound(limit: int | None) -> float:
    return math.inf if limit is None or limit < 0 else limit


@dataclass(frozen=True)
class Start:
    """How a run begins in its directory.

    Attributes:
        number: 0 for the first start, 1 for the first resume and so on.
        checkpoint: the file to resume from; ``None`` for a new run.
        global_step: optimizer steps in that file.
        passed_over: newer checkpoints that are damaged, and why.
    """

    number: int = 0
    checkpoint: Path | None = None
    global_step: int = 0
    passed_over: list[str] = field(default_factory=list)


def decide_start(run_dir: RunDir, mode: ResumeMode, limits: Limits) -> Start:
    """Decide what a start in ``run_dir`` means; nothing is written.

    Args:
        run_dir: the run directory, which may be missing.
        mode: ``auto`` resumes an unfinished run and begins a new one otherwise; ``must`` resumes or refuses;
            ``never`` begins a new run in an unused directory or refuses.
        limits: when training is to end now.

    Raises:
        ValueError: the directory holds something that this start may not touch; the message says how to go on.
    """
    if run_dir.is_unused():
        if mode == "must":
            raise ValueError(
                f"`--resume must` expects a run with checkpoints in {run_dir.root}, which is empty or missing. "
                "Check --run_dir, or use `--resume auto`."
            )
        return Start()
    _refuse_if_taken(run_dir, mode, limits)
    return find_start(run_dir, mode)


def _refuse_if_taken(run_dir: RunDir, mode: ResumeMode, limits: Limits) -> None:
    root = run_dir.root
    if run_dir.last_start() < 0:
        raise ValueError(
            f"{root} holds files but no config.yaml, so it is not a run directory. "
            "Choose an empty or new one with --run_dir."
        )
    if mode == "never":
        raise ValueError(
            f"{root} holds a run and `--resume never` forbids to continue it. "
            "Choose another --run_dir, or use `--resume auto`."
        )
    record = read_exit(run_dir.exit)
    is_done = record is not None and record.get("status") == STATUS[ExitCode.DONE]
    if is_done and not limits.allow_more_than(Limits.of_config(run_dir.config_of(run_dir.last_start()))):
        raise ValueError(
            f"{root} holds a finished run. Start a new one with another --run_dir, "
            "or train this one longer with a larger --trainer.max_steps or --trainer.max_epochs."
        )


def find_start(run_dir: RunDir, mode: ResumeMode) -> Start:
    """The start that the checkpoints of a run allow, without asking whether it may begin.

    For processes other than the first one, which has asked.

    Raises:
        ValueError: there is no intact checkpoint, where one is needed or others are damaged.
    """
    if mode == "never":
        return Start()
    found = newest_intact(run_dir.checkpoints)
    if found.path is not None:
        return Start(run_dir.last_start() + 1, found.path, found.global_step, found.passed_over)
    if found.passed_over:
        raise ValueError(
            f"No checkpoint in {run_dir.checkpoints} is intact: {' '.join(found.passed_over)} "
            "Start again with another --run_dir, or delete the damaged files to start from the beginning."
        )
    if mode == "must":
        raise ValueError(
            f"`--resume must` expects a checkpoint in {run_dir.checkpoints}, found none. "
            "Use `--resume auto` to start from the beginning."
        )
    # It begins anew, under the next number: what the earlier start recorded stays.
    return Start(run_dir.last_start() + 1)
