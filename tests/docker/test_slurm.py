"""The job files under a real Slurm: to the end on one and on two nodes, and warned, queued again and gone on."""

import json
import os
from pathlib import Path

import pytest
from runs import assert_same_bits, undisturbed
from slurm import Slurm
from test_one_config import OPEN
from trees import write_human_action

DOCKER = Path(__file__).parents[2] / "docker"
pytestmark = pytest.mark.slow
LONG = OPEN.replace("max_steps: 6", "max_steps: 40").replace("every_n_steps: 2", "every_n_steps: 0")
TWO_TASKS = ["--ntasks-per-node=2", "--gpus-per-node=2", "--cpus-per-task=1"]


@pytest.fixture(scope="module")
def slurm(tmp_path_factory):
    """Two idle nodes; skipped where Slurm is not installed or its daemons do not start."""
    slurm = Slurm(tmp_path_factory.mktemp("slurm"))
    if missing := slurm.missing():
        pytest.skip(f"no {', '.join(missing)}: install slurm-wlm and munge")
    try:
        slurm.begin()
        yield slurm
    except TimeoutError as error:
        pytest.skip(f"Slurm does not start here: {error}")
    finally:
        slurm.end()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where jobs are submitted; holds the undisturbed run of two processes that a plain command starts."""
    folder = tmp_path_factory.mktemp("jobs")
    undisturbed(folder, "--trainer.devices=2", config=LONG)
    return folder


def submit(slurm, folder, name, *flags, sbatch=TWO_TASKS):
    """The template on the small run, whose directory is ``name``."""
    (folder / "small.yaml").write_text(LONG)
    run = ["fit", "--config", "quickstart", "--config", "small.yaml", "--trust_imports", "queued", "--run_dir", name]
    path = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    job = [*sbatch, DOCKER / "siglightning.sbatch", *run, *flags]
    return slurm.submit(folder, *job, PYTHONPATH=path, OMP_NUM_THREADS="1")


def log_of(folder, job):
    return (folder / f"slurm-{job}.out").read_text()


@pytest.mark.parametrize(
    ("name", "sbatch"),
    [
        ("one node", TWO_TASKS),
        ("two nodes", ["--nodes=2", "--ntasks-per-node=1", "--gpus-per-node=1", "--cpus-per-task=1"]),
    ],
)
def test_the_template_runs_to_the_end(slurm, folder, name, sbatch):
    job = submit(slurm, folder, name, sbatch=sbatch)
    state = slurm.wait(job)
    assert (state["JobState"], state["ExitCode"]) == ("COMPLETED", "0:0"), log_of(folder, job)
    assert state["NumNodes"] == ("2" if name == "two nodes" else "1")
    assert json.loads((folder / name / "env.json").read_text())["world_size"] == 2
    assert log_of(folder, job).count(f"Run directory: {name}") == 1
    assert_same_bits(folder / name, folder / "undisturbed")
    assert not list((folder / name).rglob("hpc_ckpt*"))  # Lightning's own way of requeueing


def test_a_warned_job_saves_is_queued_again_and_goes_on_to_the_bit(slurm, folder, observe):
    settings = {"step": 5, "note": str(folder / "warned.time")}
    warn = {"trainer": {"callbacks": [{"class_path": "queued.Warned", "init_args": settings}]}}
    job = submit(slurm, folder, "warned", f"--config={json.dumps(warn)}")
    state = slurm.wait(job, restarts=1)
    assert (state["JobState"], state["Restarts"]) == ("PENDING", "1"), log_of(folder, job)
    record = json.loads((folder / "warned" / "exit.json").read_text())
    assert (record["status"], record["exit_code"]) == ("preempted", 75)
    assert 5 < record["global_step"] < 40
    seconds = (folder / "warned" / "exit.json").stat().st_mtime - float((folder / "warned.time").read_text())
    slurm.run_again_soon(job)
    state = slurm.wait(job)
    assert (state["JobState"], state["ExitCode"], state["Restarts"]) == ("COMPLETED", "0:0", "1")
    log = log_of(folder, job)
    assert log.count("SIGUSR1: saving and stopping after the step under way") == 2
    assert f"from step {record['global_step']}" in log
    assert_same_bits(folder / "warned", folder / "undisturbed")
    observe(
        "Slurm sends SIGUSR1 before the time limit, two processes under the sbatch template",
        expected="saves, exit 75, queues itself again, resumes; weights equal to the bit",
        observed=f"saved step {record['global_step']} for a signal in step 5, queued again by itself, equal to the bit",
        seconds=seconds,
    )


@pytest.mark.parametrize("model", ["clip", "siglip"])
def test_the_job_files_of_the_report_run_where_they_are_submitted(slurm, folder, tmp_path, model):
    root = write_human_action(tmp_path / "har", per_class=8, test_per_class=2)
    # Its weights are in no package registry: a small tower in their place, and two steps of the recipe's ten epochs.
    tower = '{name: "local:conv", pretrained: false, kwargs: {width: 8, depths: [1, 1]}}'
    short = ["--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.limit_test_batches=1"]
    plain = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--data.init_args.num_workers=0"]
    file = os.path.relpath(DOCKER / f"fine_tune_har_{model}.slurm", tmp_path)
    job = slurm.submit(
        tmp_path,
        "--cpus-per-task=1",
        file,
        f"--data.init_args.root={root}",
        f"--model.init_args.network.init_args.image_tower={tower}",
        *short,
        *plain,
    )
    state = slurm.wait(job)
    assert (state["JobState"], state["ExitCode"], state["JobName"]) == ("COMPLETED", "0:0", f"har_{model}"), log_of(
        tmp_path, job
    )
    assert json.loads((tmp_path / "runs" / f"har_{model}" / "exit.json").read_text())["global_step"] == 2


def test_what_the_job_files_ask_of_slurm_to_stop_in_time_is_the_same():
    words = ("--signal=SIGUSR1@300", "--requeue", "--open-mode=append")
    for file in (DOCKER / "siglightning.sbatch", *DOCKER.glob("*.slurm")):
        options = [line for line in file.read_text().splitlines() if line.startswith("#SBATCH ")]
        assert [sum(word in line.split() for line in options) for word in words] == [1, 1, 1], file
