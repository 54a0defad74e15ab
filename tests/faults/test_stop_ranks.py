"""SIGTERM to one of several processes: all stop after the same step, and the run goes on to the bit."""

import json

import pytest
from runs import NO_CALLBACKS, PLAIN, SMALL, assert_same_bits, callback, fit, torchrun, undisturbed

STEPS = 60
CONFIG = SMALL.replace("max_steps: 6", f"max_steps: {STEPS}").replace("every_n_steps: 2", "every_n_steps: 0")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Holds the run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("stop")
    undisturbed(folder, config=CONFIG)
    return folder


@pytest.mark.parametrize(("name", "launch", "rank", "parent"), [
    pytest.param("rank 0", PLAIN, 0, False, marks=pytest.mark.slow),
    ("rank 2", PLAIN, 2, False),
    pytest.param("the agent of torchrun", torchrun(3), 1, True, marks=pytest.mark.slow),
    ("rank 1 under torchrun with restarts", torchrun(3, restarts=1), 1, False),
])  # fmt: skip
def test_all_stop_after_the_same_step(folder, observe, name, launch, rank, parent):
    run_dir, note = folder / name, folder / f"{name}.time"
    stopped = fit(
        folder,
        name,
        callback("Terminate", rank=rank, step=5, parent=parent, note=str(note)),
        launch=launch,
        config=CONFIG,
    )
    # torchrun makes 1 of every code, and restarts what failed: the restarted processes find that it was no failure.
    assert stopped.code == (75 if launch is PLAIN else 1), stopped.output
    record = json.loads((run_dir / "exit.json").read_text())
    assert (record["status"], record["exit_code"]) == ("preempted", 75)
    assert 5 < record["global_step"] < STEPS
    checkpoints = sorted(path.name for path in (run_dir / "checkpoints").glob("*.ckpt"))
    assert checkpoints == [f"step-{record['global_step']:08d}.ckpt"]
    assert stopped.output.count("the same command goes on from there") == 1
    seconds = (run_dir / "exit.json").stat().st_mtime - float(note.read_text())
    rest = fit(folder, name, NO_CALLBACKS, launch=launch, config=CONFIG)
    assert rest.code == 0, rest.output
    assert f"from step {record['global_step']}" in rest.output
    assert_same_bits(run_dir, folder / "undisturbed")
    observe(
        f"SIGTERM to {name}",
        expected="all stop after one step, save, exit 75 (torchrun makes 1 of it); resumed to the bit",
        observed=f"step {record['global_step']} for a signal in step 5; the resumed weights are equal to the bit",
        seconds=seconds,
    )
