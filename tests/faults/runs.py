"""A small run of the command line in processes of its own, and what is left of it."""

import csv
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

# Three processes on the pictograms; dropout, so that a run that goes on must have its random numbers right, too.
SMALL = """
model:
  init_args:
    network:
      init_args:
        image_tower: {name: "local:conv", kwargs: {width: 8, depths: [1, 1]}}
        text_tower: {name: "local:text_transformer", kwargs: {width: 16, depth: 1, heads: 2, dropout: 0.2}}
        embed_dim: 16
data:
  init_args: {global_batch_size: 12}
trainer:
  strategy: {class_path: siglightning.distributed.RingDDPStrategy, init_args: {ring_timeout_s: 40}}
  devices: 3
  max_steps: 6
  log_every_n_steps: 1
  limit_val_batches: 0
  enable_progress_bar: false
checkpoint: {every_n_steps: 2}
test_after_fit: false
"""
# One process, which starts faster.
ONE = re.sub(r"  strategy: .*\n  devices: 3\n", "  devices: 1\n", SMALL)
LIMIT_S = 300  # for what takes seconds on an idle machine
PLAIN = [sys.executable, "-m", "siglightning"]
HERE = str(Path(__file__).parent)


def torchrun(processes, restarts=0):
    """The words before ``fit`` with which torchrun starts it."""
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    return [*launch, f"--max_restarts={restarts}", "-m", "siglightning"]


@dataclass
class Ended:
    """How a command ended, ``seconds`` after its start; ``ended`` is the time of day, in seconds."""

    code: int
    output: str
    seconds: float
    ended: float


def environment(**more):
    """One thread a process, and the callbacks of ``faulty`` at hand."""
    paths = os.pathsep.join(filter(None, [HERE, os.environ.get("PYTHONPATH", "")]))
    return os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": paths, "WANDB_MODE": "offline"} | more


def start(folder, run_dir, *flags, launch=PLAIN, config=SMALL, prefix=(), **more):
    """Begin ``siglightning fit`` on ``config``; its output goes to ``RUN_DIR.log`` in ``folder``."""
    (folder / "small.yaml").write_text(config)
    arguments = ["fit", "--config", "quickstart", "--config", "small.yaml", "--trust_imports", "faulty"]
    with (folder / f"{run_dir}.log").open("a") as log:
        return subprocess.Popen(
            [*prefix, *launch, *arguments, "--run_dir", run_dir, *flags],
            env=environment(**more),
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
        )


def fit(folder, run_dir, *flags, **options):
    """A whole run; its output is that of this start alone."""
    log = folder / f"{run_dir}.log"
    before, begun = len(log.read_bytes()) if log.exists() else 0, time.monotonic()
    code = start(folder, run_dir, *flags, **options).wait()
    return Ended(code, log.read_bytes()[before:].decode(errors="replace"), time.monotonic() - begun, time.time())


def undisturbed(folder, *flags, **options):
    """The run to compare with; its directory is ``undisturbed``."""
    ended = fit(folder, "undisturbed", *flags, **options)
    assert ended.code == 0, ended.output
    return folder / "undisturbed"


def callback(name, **init_args):
    """The flag that adds a callback of ``faulty``."""
    return (
        f"--config={json.dumps({'trainer': {'callbacks': [{'class_path': f'faulty.{name}', 'init_args': init_args}]}})}"
    )


NO_CALLBACKS = "--config={trainer: {callbacks: null}}"


def weights(run_dir):
    """Those of the newest step that was saved."""
    newest = sorted((run_dir / "checkpoints").glob("step-*.ckpt"))[-1]
    return torch.load(newest, weights_only=True)["state_dict"]


def assert_same_bits(run_dir, expected):
    """The newest weights of both runs are equal to the bit."""
    found, wanted = weights(run_dir), weights(expected)
    assert found.keys() == wanted.keys()
    for key, value in wanted.items():
        assert torch.equal(found[key], value), key


def wait_until(condition):
    """Look at it again and again; it must become true before :data:`LIMIT_S` have passed."""
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def gone(pid):
    """Whether a process has ended; one that nobody has waited for counts."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


MEASURED = ("throughput/", "memory/", "epoch/seconds", "epoch/peak_memory")  # what the clock and the machine decide


def rows(run_dir):
    """Those of ``metrics.csv``, without what was measured."""
    with (run_dir / "metrics.csv").open() as file:
        found = list(csv.DictReader(file))
    return [{name: cell for name, cell in row.items() if not name.startswith(MEASURED)} for row in found]


def leaves(value, name=""):
    """What a checkpoint holds, by its path in it."""
    if isinstance(value, dict | list):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from leaves(inner, f"{name}.{key}")
    else:
        yield name, value


def assert_same_run(run_dir, expected):
    """Newest weights, optimizer and schedules, and all rows of metrics are equal to the bit."""
    states = []
    for folder in (run_dir, expected):
        newest = sorted((folder / "checkpoints").glob("step-*.ckpt"))[-1]
        content = torch.load(newest, weights_only=True)
        kept = {key: content[key] for key in ("global_step", "state_dict", "optimizer_states", "lr_schedulers")}
        states.append(dict(leaves(kept)))
    found, wanted = states
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert torch.equal(found[name], value) if isinstance(value, torch.Tensor) else found[name] == value, name
    assert rows(run_dir) == rows(expected)
    assert len(rows(expected)) > 1
