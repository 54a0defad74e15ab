"""What surviving faults costs a training run: with all of it against without any, in turns.

    python -m benchmarks.overhead                     # the quickstart in one process
    python -m benchmarks.overhead --processes 2 --write

Two trainings of one configuration take turns on the machine, so many steps each; the ratio is taken within a turn.
One is `siglightning fit` as it comes: signals with questions to the other processes, watchdog, gradients looked at in
every step, a thread that answers other ranks. The other has none of these. A checkpoint every 500 steps is timed by
itself and added as its share: it falls into one turn in many.

The pauses between turns count as training for the questions, so that more of them are asked than in a run.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import torch
from lightning.pytorch import Callback

from siglightning.distributed.sentinel import Sentinel
from siglightning.runtime.environment import describe_environment
from siglightning.runtime.run_checkpoint import RunCheckpoint
from siglightning.tasks.finite import FiniteGuard

RESULTS = Path(__file__).parent / "results" / "overhead.json"
WARM_UP = 2  # turns not counted
SAVE_EVERY = 500  # the default of checkpoint.every_n_steps


class Turns(Callback):
    """Waits for its turn, trains some steps, and tells how many seconds they took; all by the first process."""

    def __init__(self, folder: str, steps: int) -> None:
        self.folder, self.steps = Path(folder), steps

    def on_train_start(self, trainer: Any, *_: Any) -> None:
        """Open the pipes."""
        self.trained = 0
        if trainer.global_rank == 0:
            self.go, self.done = (self.folder / "go").open("rb", 0), (self.folder / "done").open("wb", 0)
            self.wait()

    def wait(self) -> None:
        """Until it is this training's turn."""
        self.go.read(1)
        self.begun = time.perf_counter()

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        """The turn may be over."""
        self.trained += 1
        if trainer.global_rank == 0 and self.trained % self.steps == 0:
            self.done.write(f"{time.perf_counter() - self.begun}\n".encode())
            self.wait()

    def on_train_end(self, trainer: Any, *_: Any) -> None:
        """Time one save."""
        checkpoints = [callback for callback in trainer.callbacks if isinstance(callback, RunCheckpoint)]
        begun = time.perf_counter()
        for checkpoint in checkpoints:
            checkpoint._write(trainer, "step", 2, weights_only=False)
        if trainer.global_rank == 0 and checkpoints:
            (self.folder / "save").write_text(str(time.perf_counter() - begun))


class Nothing(Callback):
    """In the place of a callback that is left out."""

    def __init__(self, *_: Any) -> None:
        pass


def child(kind: str, folder: str, steps: int, turns: int, processes: int) -> int:
    """One of the two trainings."""
    import siglightning.cli.app
    from siglightning.cli import main

    options = ["--checkpoint.every_n_steps=0"]
    if kind == "bare":
        siglightning.cli.app.GracefulStop = Nothing
        FiniteGuard.lets_pass = lambda *_: True
        Sentinel.run = lambda _: None
        options = ["--watchdog.hang_s=0", "--trainer.enable_checkpointing=false"]
    callback = {"class_path": "benchmarks.overhead.Turns", "init_args": {"folder": folder, "steps": steps}}
    strategy = ["--trainer.strategy=ring_ddp", f"--trainer.devices={processes}"] if processes > 1 else []
    return main([
        *("fit", "--config", "quickstart", "--trust_imports", "benchmarks", "--run_dir", f"{folder}/run"),
        *(f"--config={json.dumps({'trainer': {'callbacks': [callback]}})}", "--test_after_fit=false"),
        *("--trainer.limit_val_batches=0", "--trainer.enable_progress_bar=false", "--data.num_workers=0"),
        *(f"--trainer.max_steps={steps * turns}", *strategy, *options),
    ])  # fmt: skip


def measure(steps: int, turns: int, processes: int) -> dict[str, Any]:
    """Both trainings, in turns."""
    with tempfile.TemporaryDirectory() as root:
        folders = {kind: Path(root, kind) for kind in ("bare", "guarded")}
        children = {kind: _start(kind, folder, steps, turns, processes) for kind, folder in folders.items()}
        pipes = {kind: ((f / "go").open("wb", 0), (f / "done").open("rb", 0)) for kind, f in folders.items()}
        seconds: dict[str, list[float]] = {kind: [] for kind in folders}
        for turn in range(turns):
            for kind in sorted(folders, reverse=bool(turn % 2)):  # each is first as often
                go, done = pipes[kind]
                go.write(b"!")
                seconds[kind].append(float(done.readline()))
        for kind, process in children.items():
            pipes[kind][0].write(b"!")
            if process.wait():
                raise SystemExit(f"The {kind} training ended with {process.returncode}.")
        save = float((folders["guarded"] / "save").read_text())
    return {"seconds": {kind: times[WARM_UP:] for kind, times in seconds.items()}, "save": save}


def _start(kind: str, folder: Path, steps: int, turns: int, processes: int) -> "subprocess.Popen[bytes]":
    folder.mkdir()
    for name in ("go", "done"):
        os.mkfifo(folder / name)
    sizes = [str(number) for number in (steps, turns, processes)]
    command = [sys.executable, "-m", "benchmarks.overhead", "--child", kind, str(folder), *sizes]
    environment = os.environ | {"OMP_NUM_THREADS": str(max(1, torch.get_num_threads() // processes))}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--turns", type=int, default=32)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--write", action="store_true", help="add the result to benchmarks/results/overhead.json")
    args = parser.parse_args()
    found = measure(args.steps, args.turns, args.processes)
    bare, guarded = found["seconds"]["bare"], found["seconds"]["guarded"]
    ratios = [with_it / without for with_it, without in zip(guarded, bare, strict=True)]
    low, _, high = quantiles(ratios, n=4)
    share = found["save"] / (SAVE_EVERY * median(bare) / args.steps)
    step_ms = 1e3 * median(bare) / args.steps
    line = (
        f"{args.processes} process(es), {len(bare)} turns of {args.steps} steps of {step_ms:.1f} ms: with all of it "
        f"{median(ratios):.4f} times the seconds (quartiles {low:.4f} to {high:.4f}; all turns together "
        f"{sum(guarded) / sum(bare):.4f}); a save of {1e3 * found['save']:.0f} ms every {SAVE_EVERY} steps adds "
        f"{100 * share:.2f} %."
    )
    print(line)
    if args.write:
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        record = {"result": line, "ratios": ratios, "environment": describe_environment(args.processes, sys.argv)}
        RESULTS.write_text(json.dumps(results | {str(args.processes): record}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(*sys.argv[2:4], *map(int, sys.argv[4:7])))  # type: ignore[arg-type]
    main()
