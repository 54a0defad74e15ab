"""Cells as files: what is done is not done again, what failed says so, what was killed is tried once more."""

import json
import logging
import multiprocessing
import time
import traceback
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from benchmarks.paper.study import Result, Results, Settings, Study, Workspace, cell_name
from siglightning.runtime.environment import describe_environment
from siglightning.runtime.files import write_text

ATTEMPTS = 3  # a cell that ends without a word so often (killed, out of memory) is not begun again


@dataclass(frozen=True)
class CellFile:
    """The file of a cell: ``begun``, ``done`` with values, or ``failed`` with the error."""

    path: Path

    def read(self) -> dict[str, Any]:
        """Its content; nothing where it was never begun."""
        return json.loads(self.path.read_text()) if self.path.is_file() else {}

    def write(self, **content: Any) -> None:
        """Replace it, whole or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_text(self.path, json.dumps(content, indent=1) + "\n")

    @property
    def state(self) -> str:
        """``new``, ``done`` or ``failed``."""
        content = self.read()
        if content.get("state") == "begun":
            return "failed" if content["attempts"] >= ATTEMPTS else "new"
        return content.get("state", "new")

    @property
    def error(self) -> str:
        """One line on why it failed."""
        return self.read().get("error", f"ended without a word {ATTEMPTS} times (killed, or out of memory)")


def cell_file(study: Study, settings: Settings, workspace: Workspace) -> CellFile:
    """Where the result of a cell lies."""
    return CellFile(workspace.root / "cells" / study.name / f"{cell_name(settings, workspace.scale)}.json")


def run_cell(study: Study, settings: Settings, workspace: Workspace) -> str:
    """Run one cell and write its file; an error is written, not raised.

    Returns:
        ``done`` or ``failed``.
    """
    file = cell_file(study, settings, workspace)
    known = {"settings": settings, "attempts": file.read().get("attempts", 0) + 1}
    file.write(state="begun", **known)
    start, cpu = time.perf_counter(), time.process_time()
    try:
        with _only_errors():
            values = study.run(settings, workspace)
    except KeyboardInterrupt:
        file.path.unlink()  # it did nothing wrong: the next start begins it anew, as often as it takes
        raise
    except Exception as error:  # whatever it is, the other cells go on, and the page tells
        line = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
        file.write(state="failed", error=line, traceback=traceback.format_exc(), **known)
        return "failed"
    seconds = {"seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu}
    file.write(state="done", values=values, commit=_commit(), **seconds, **known)
    return "done"


@contextmanager
def _only_errors() -> Iterator[None]:
    """Without what Lightning says of each of some hundred Trainers; whoever called hears it again afterwards."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*(eval mode at the start|not have many workers|LeafSpec).*")
            yield
    finally:
        logger.setLevel(level)


def pending(study: Study, workspace: Workspace, retry: bool) -> list[Settings]:
    """Cells still to be run; with ``retry`` also those that failed."""
    wanted = ("new", "failed") if retry else ("new",)
    return [settings for settings in study.cells(workspace) if cell_file(study, settings, workspace).state in wanted]


def run_cells(study: Study, workspace: Workspace, jobs: int, retry: bool = False) -> None:
    """Run what is pending, ``jobs`` at a time in processes of their own, and tell how it goes.

    Raises:
        SystemExit: a process was killed; what it did is lost, all else is kept.
    """
    todo = pending(study, workspace, retry)
    if not todo:
        return
    study.prepare(workspace)
    start, states = time.monotonic(), []
    for settings, state in _run(study, todo, workspace, 1 if study.timed else jobs):
        states.append(state)
        each = (time.monotonic() - start) / len(states)
        left = each * (len(todo) - len(states)) / 60
        name = cell_name(settings, workspace.scale)
        print(f"{study.name} {len(states)}/{len(todo)} {name}: {state}; about {left:.0f} min left", flush=True)


def _run(study: Study, todo: Sequence[Settings], workspace: Workspace, jobs: int) -> Iterator[tuple[Settings, str]]:
    if jobs == 1:
        yield from ((settings, run_cell(study, settings, workspace)) for settings in todo)
        return
    context = multiprocessing.get_context("spawn")  # a fork would inherit torch's threads half alive
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        queue, running = list(reversed(todo)), dict[Future[str], Settings]()
        while queue or running:
            while queue and len(running) < jobs:
                settings = queue.pop()
                running[pool.submit(_run_by_name, study.name, settings, workspace)] = settings
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                settings = running.pop(future)
                try:
                    yield settings, future.result()
                except BrokenProcessPool as error:
                    raise SystemExit("A process was killed, perhaps for memory. Start again to go on.") from error


def _run_by_name(name: str, settings: Settings, workspace: Workspace) -> str:
    from benchmarks.paper.studies import STUDIES

    return run_cell(STUDIES[name], settings, workspace)


def finished(study: Study, workspace: Workspace) -> Results:
    """All results of a study so far."""
    found = []
    for settings in study.cells(workspace):
        content = cell_file(study, settings, workspace).read()
        if content.get("state") == "done":
            found.append(Result(settings, content["values"], content["seconds"], content["cpu_seconds"]))
    return Results(found, workspace.scale)


def failures(study: Study, workspace: Workspace) -> dict[str, str]:
    """Cells that failed, by name, with one line each."""
    files = [cell_file(study, settings, workspace) for settings in study.cells(workspace)]
    return {file.path.stem: file.error for file in files if file.state == "failed"}


def commits(study: Study, workspace: Workspace) -> list[str]:
    """At which commits the results were made, sorted; ``+`` marks a changed tree."""
    contents = [cell_file(study, settings, workspace).read() for settings in study.cells(workspace)]
    return sorted({content["commit"] for content in contents if "commit" in content})


@cache
def _commit() -> str:
    git = describe_environment(1, [])["git"]
    return "unknown" if git is None else git["commit"][:7] + ("+" if git["dirty"] else "")
