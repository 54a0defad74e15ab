"""What surviving faults costs a training run: with all of it against without any, in turns.

    python -m benchmarks.overhead                     # the quickstart in one process
    python -m benchmarks.overhead --processes 2 --write

Two trainings of one configuration take turns on the machine, so many steps each; the ratio is taken within a turn.
That is done with several pairs of new processes, for where their memory lies makes more of a difference than a turn.
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
from operator import truediv
from pathlib import Path
from statistics import median
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
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    parser.add_argument("--turns", type=int, default=42, help="of a pair; the first two are not counted")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--processes", type=int, default=1, help="of each training")
    parser.add_argument("--write", action="store_true", help="add the result to benchmarks/results/overhead.json")
    args = parser.parse_args()
    pairs = [measure(args.steps, args.turns, args.processes) for _ in range(args.pairs)]
    ratios = [median(map(truediv, pair["seconds"]["guarded"], pair["seconds"]["bare"])) for pair in pairs]
    step_s = median(seconds for pair in pairs for seconds in pair["seconds"]["bare"]) / args.steps
    save_s = median(pair["save"] for pair in pairs)
    line = (
        f"{args.processes} process(es), {args.pairs} pairs, {args.turns - WARM_UP} turns of {args.steps} steps of "
        f"{1e3 * step_s:.1f} ms: with all of it {median(ratios):.4f} times the seconds (medians of the pairs: "
        f"{', '.join(f'{ratio:.4f}' for ratio in sorted(ratios))}); a save of {1e3 * save_s:.0f} ms every {SAVE_EVERY} "
        f"steps adds {100 * save_s / (SAVE_EVERY * step_s):.2f} %."
    )
    print(line)
    if args.write:
        results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
        command = " ".join(["python -m benchmarks.overhead", *sys.argv[1:]])
        record = {"result": line, "command": command, "environment": describe_environment(args.processes, [])}
        RESULTS.write_text(json.dumps(results | {str(args.processes): record | {"pairs": pairs}}, indent=1) + "\n")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        sys.exit(child(sys.argv[2], sys.argv[3], *map(int, sys.argv[4:7])))
    main()
