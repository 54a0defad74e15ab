"""`siglightning fit --trainer.devices=3` as a user types it: the command starts its other processes itself."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CONFIG = """
model:
  init_args:
    network:
      init_args:
        image_tower: {name: "local:conv", kwargs: {width: 8, depths: [1, 1]}}
        text_tower: {name: "local:text_transformer", kwargs: {width: 16, depth: 1, heads: 2}}
        embed_dim: 16
data:
  init_args: {global_batch_size: 12}
trainer:
  max_steps: 5
  limit_val_batches: 0
  enable_progress_bar: false
  precision: 64-true
  logger: false
"""
STRATEGY = "{class_path: siglightning.distributed.RingDDPStrategy, init_args: {ring_timeout_s: 18}}"


def fit(folder, run_dir, *flags):
    (folder / "small.yaml").write_text(CONFIG)
    command = [sys.executable, "-m", "siglightning", "fit", "--config", "quickstart", "--config", "small.yaml"]
    return subprocess.run(
        [*command, "--run_dir", run_dir, *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1] / "faults")},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


def test_three_processes_report_the_numbers_of_one(tmp_path):
    """Training, evaluation over all images and the final table; each thing is said once."""
    three = fit(tmp_path, "three", "--trainer.devices=3", "--trainer.strategy=ring_ddp")
    assert three.returncode == 0, three.stdout + three.stderr
    assert fit(tmp_path, "one").returncode == 0
    tables = [json.loads((tmp_path / name / "summary.json").read_text()) for name in ("three", "one")]
    assert tables[0].keys() == tables[1].keys() >= {"seen_concepts", "unseen_concepts"}
    for test_set, metrics in tables[1].items():
        for metric, row in metrics.items():
            for key, value in row.items():
                assert tables[0][test_set][metric][key] == pytest.approx(value, abs=1e-9), (test_set, metric, key)
    assert three.stdout.count("Run directory: ") == 2  # at the start and at the end
    assert three.stdout.count("zeroshot_acc@5") == 2  # once a test set


@pytest.mark.parametrize(
    ("callback", "world_size", "expected"),
    [
        ("Stall", 2, "error: Rank 1 did not come to step 3, having finished step 2"),
        ("Kill", 3, "error: Rank 1 did not answer at step 3, having finished step 2: dead"),
        ("Fail", 3, "error: Rank 1 stopped at step 3 with KeyError: 'what went wrong'"),
    ],
)
def test_a_process_that_fails_ends_the_command_and_is_named(tmp_path, callback, world_size, expected):
    (tmp_path / "fault.yaml").write_text(
        f"trainer: {{callbacks: [{{class_path: faulty.{callback}, init_args: {{rank: 1, step: 3, note: pid}}}}]}}"
    )
    flags = ["--config", "fault.yaml", "--trust_imports", "faulty", "--test_after_fit=false"]
    run = fit(tmp_path, "run", *flags, f"--trainer.devices={world_size}", f"--trainer.strategy={STRATEGY}")
    assert run.returncode == 4, run.stdout + run.stderr
    errors = [line for line in run.stderr.splitlines() if line.startswith("error: ") and "[process" not in line]
    assert len(errors) == 1, run.stderr
    assert errors[0].startswith(expected)
    assert json.loads((tmp_path / "run" / "exit.json").read_text())["exit_code"] == 4
    with pytest.raises(ProcessLookupError):  # nothing is left behind
        os.kill(int((tmp_path / "pid").read_text()), 0)
