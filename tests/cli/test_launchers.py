"""Devices and nodes come from the launcher's environment, are checked against the configuration, and never ignored."""

import pytest
import torch
from lightning.fabric.plugins.environments import LightningEnvironment
from lightning.pytorch import Trainer

from siglightning.cli.launch import StepEnvironment, as_launched
from siglightning.distributed import RingDDPStrategy
from siglightning.runtime.launched import launched_by

TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "WORLD_SIZE": "6", "LOCAL_WORLD_SIZE": "3", "GROUP_WORLD_SIZE": "2"}
# As Slurm 22.05 has set them on two nodes with two tasks each; in the batch script, too, but for the last four.
JOB = {
    "SLURM_JOB_ID": "7",
    "SLURM_JOB_NAME": "train",
    "SLURM_NNODES": "2",
    "SLURM_NTASKS": "4",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_NODELIST": "n[1-2]",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_NODEID": "0",
}
STEP = {
    "SLURM_STEP_ID": "0",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_STEP_NUM_NODES": "2",
    "SLURM_STEP_TASKS_PER_NODE": "2(x2)",
}
# What `srun --nodes 1 --ntasks 1` finds within that job: Slurm leaves the job's tasks a node and list of nodes there.
PART = {
    "SLURM_STEP_NUM_TASKS": "1",
    "SLURM_STEP_NUM_NODES": "1",
    "SLURM_STEP_TASKS_PER_NODE": "1",
    "SLURM_NTASKS": "1",
    "SLURM_NNODES": "1",
    "SLURM_STEP_NODELIST": "n2",
}
SETTINGS = {"plugins": None, "devices": "auto", "num_nodes": 1, "strategy": "auto", "accelerator": "cpu"}
STARTED = {
    "torchrun": (TORCHRUN, ("torchrun", 2, 3)),
    "torchrun under srun": (TORCHRUN | JOB | STEP, ("torchrun", 2, 3)),
    "srun": (JOB | STEP, ("srun", 2, 2)),
    "srun without numbers of a step": (JOB | {"SLURM_STEP_ID": "0"}, ("srun", 2, 2)),
    "srun on a part of the job": (JOB | STEP | PART, ("srun", 1, 1)),
    "srun in a shell of salloc": (JOB | STEP | {"SLURM_JOB_NAME": "interactive"}, ("srun", 2, 2)),
    "a batch script": (JOB, None),
    "a shell of salloc": ({"SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "interactive", "SLURM_NTASKS": "4"}, None),
    "a shell of srun --pty": (JOB | STEP | PART | {"SLURM_JOB_NAME": "bash"}, None),
    "nobody": ({}, None),
}


@pytest.fixture
def launch(monkeypatch):
    """Put a launcher's variables into the environment, in place of all that may be there."""

    def put(variables):
        for name in {*TORCHRUN, *JOB, *STEP, *PART, "MASTER_ADDR", "MASTER_PORT"}:
            monkeypatch.setenv(name, "")  # so that what Lightning sets goes afterwards
            monkeypatch.delenv(name)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)

    return put


@pytest.mark.parametrize("name", STARTED)
def test_who_started_this_process(name):
    variables, expected = STARTED[name]
    found = launched_by(variables)
    assert (found and (found.launcher, found.nodes, found.per_node)) == expected


@pytest.mark.parametrize(
    ("variables", "numbers"),
    [
        (TORCHRUN | {"WORLD_SIZE": "5"}, "got 3 here and 5 on 2 nodes"),
        (JOB | STEP | {"SLURM_STEP_NUM_TASKS": "3", "SLURM_STEP_TASKS_PER_NODE": "2,1"}, "3 tasks on 2 nodes"),
        (JOB | STEP | {"SLURM_STEP_TASKS_PER_NODE": "3,1"}, "4 tasks on 2 nodes"),
    ],
)
def test_uneven_nodes_are_refused(variables, numbers):
    with pytest.raises(ValueError, match=numbers):
        launched_by(variables)


REFUSED = {
    "devices": (["--trainer.devices=2"], "Expected trainer.devices 3 and trainer.num_nodes 2"),
    "a list of devices": (["--trainer.devices=0,1"], "got 0,1 and 1"),
    "nodes": (["--trainer.num_nodes=3"], "got auto and 3. Leave both out"),
    "one process": (["--trainer.strategy=single_device"], "Expected a strategy for 6 processes"),
    "one process, as a class": (
        ["--trainer.strategy={class_path: lightning.pytorch.strategies.SingleDeviceStrategy}"],
        "6 processes",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("command", ["fit", "validate", "doctor"])
def test_other_numbers_than_the_launchers_are_refused(name, command, fit, launch):
    launch(TORCHRUN)
    arguments, expected = REFUSED[name]
    code, output = fit(*arguments, command=command)
    assert code == 2
    (error,) = [line for line in output.splitlines() if line.startswith("error: ")]
    assert expected in error
    assert "WORLD_SIZE 6, LOCAL_WORLD_SIZE 3, GROUP_WORLD_SIZE 2" in error


@pytest.mark.parametrize("arguments", [[], ["--trainer.devices=1", "--trainer.num_nodes=1"]])
def test_one_task_of_a_larger_job_is_a_whole_run(arguments, fit, launch):
    launch(JOB | STEP | PART)
    code, output = fit("--trainer.max_steps=2", *arguments)
    assert code == 0, output


@pytest.mark.parametrize("where", ["a batch script", "a shell of salloc"])
def test_a_plain_command_within_a_slurm_job_is_plain(where, fit, launch):
    launch(STARTED[where][0])
    code, output = fit("--trainer.max_steps=2")
    assert code == 0, output
    assert output.count("Not started by srun: one command, although the Slurm job has 4 tasks.") == 1
    assert "`srun` command is available" not in output


@pytest.mark.parametrize(
    ("variables", "settings", "expected"),
    [
        (TORCHRUN, {}, {"devices": 3, "num_nodes": 2, "strategy": "ring_ddp"}),
        (TORCHRUN, {"devices": -1, "strategy": "ddp"}, {"devices": 3, "num_nodes": 2}),
        (TORCHRUN, {"devices": [4, 5, 6]}, {"devices": [4, 5, 6], "num_nodes": 2, "strategy": "ring_ddp"}),
        (JOB | STEP, {}, {"devices": 2, "num_nodes": 2, "strategy": "ring_ddp"}),
        (JOB | STEP | PART, {}, {"devices": 1, "num_nodes": 1}),
        ({}, {}, {}),
        ({}, {"devices": "2"}, {"strategy": "ring_ddp"}),
        ({}, {"devices": "0,"}, {}),
        ({}, {"num_nodes": 2}, {"strategy": "ring_ddp"}),
    ],
)
def test_what_the_configuration_leaves_open_is_the_launchers(variables, settings, expected, launch):
    launch(variables)
    changed = as_launched(SETTINGS | settings)
    changed.pop("plugins")
    assert changed == expected


def test_without_devices_all_graphics_cards_count(launch, monkeypatch):
    launch({})
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert as_launched(SETTINGS | {"accelerator": "auto"})["strategy"] == "ring_ddp"
    assert "strategy" not in as_launched(SETTINGS)  # on the processor


def test_a_step_of_slurm_has_its_own_size_and_first_node_and_no_requeue_of_lightnings(launch):
    launch(JOB | STEP | PART | {"SLURM_STEP_NUM_TASKS": "2", "SLURM_STEP_TASKS_PER_NODE": "2"})
    trainer = Trainer(**(SETTINGS | as_launched(SETTINGS)), logger=False, enable_checkpointing=False)
    environment = trainer.strategy.cluster_environment
    assert isinstance(trainer.strategy, RingDDPStrategy)
    assert isinstance(environment, StepEnvironment)
    assert (trainer.world_size, environment.world_size(), environment.main_address) == (2, 2, "n2")
    assert not environment.auto_requeue


def test_an_environment_of_the_users_stays(launch):
    launch(JOB | STEP)
    mine = LightningEnvironment()
    assert as_launched(SETTINGS | {"plugins": [mine]})["plugins"] == [mine]
