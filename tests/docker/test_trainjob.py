"""The manifest for Kubernetes: consistent with the image, readable by the command line, started as its runtime does.

Its form was compared by hand with the schemas of Kubeflow Trainer's releases (docs/clusters.md), which are not here.
"""

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from dockerfile import instructions, only, variables
from runs import environment
from slurm import free_ports
from test_one_config import OPEN

from siglightning.cli import main

DOCKER = Path(__file__).parents[2] / "docker"
JOB = yaml.safe_load((DOCKER / "trainjob.yaml").read_text())
TRAINER = JOB["spec"]["trainer"]
(PATCH,) = JOB["spec"]["runtimePatches"]
(NODE,) = PATCH["trainingRuntimeSpec"]["template"]["spec"]["replicatedJobs"]
POD = NODE["template"]["spec"]["template"]["spec"]
(CONTAINER,) = POD["containers"]
IMAGE = instructions((DOCKER / "Dockerfile").read_text())
# Set by Trainer itself; it refuses a job that sets them.
RESERVED = {"PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT"}


def test_it_is_a_job_of_trainer_two_on_the_runtime_for_torch():
    assert (JOB["apiVersion"], JOB["kind"]) == ("trainer.kubeflow.org/v1alpha1", "TrainJob")
    assert JOB["spec"]["runtimeRef"]["name"] == "torch-distributed"
    assert (NODE["name"], CONTAINER["name"]) == ("node", "node")
    assert "numProcPerNode" not in TRAINER


def test_the_user_is_the_images():
    context = POD["securityContext"]
    assert context["runAsNonRoot"] is True
    assert f"{context['runAsUser']}:{context['runAsGroup']}" == only(IMAGE, "USER")


def test_data_is_read_only_runs_are_not_and_memory_is_shared():
    mounts = {mount["mountPath"]: mount for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    assert {mount["name"] for mount in mounts.values()} == set(volumes)
    assert mounts["/data"]["readOnly"] is True
    assert "readOnly" not in mounts["/runs"]
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    assert TRAINER["args"][TRAINER["args"].index("--run_dir") + 1].startswith("/runs/")


def test_a_run_has_the_time_to_save():
    values = {each["name"]: each["value"] for each in TRAINER["env"]}
    assert 0 < int(values["TORCH_ELASTIC_SHUTDOWN_TIMEOUT"]) < POD["terminationGracePeriodSeconds"]
    assert not RESERVED & set(values)
    assert not set(variables(IMAGE)) & set(values)  # the image's own stay
    assert all(isinstance(value, str) for value in values.values())


def test_the_command_line_reads_its_arguments(capsys):
    assert TRAINER["command"] == ["torchrun", "-m", "siglightning"]
    assert main([*TRAINER["args"], "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["trainer"]["devices"], config["trainer"]["num_nodes"]) == ("auto", 1)


@pytest.mark.slow
def test_its_command_runs_with_what_trainer_puts_into_the_environment(tmp_path):
    (tmp_path / "small.yaml").write_text(OPEN)
    given = ("1", "2", "0", "127.0.0.1", str(free_ports(1)[0]))
    names = ("PET_NNODES", "PET_NPROC_PER_NODE", "PET_NODE_RANK", "PET_MASTER_ADDR", "PET_MASTER_PORT")
    words = [str(Path(sys.executable).parent / TRAINER["command"][0]), *TRAINER["command"][1:]]
    run = ["fit", "--config", "quickstart", "--config", "small.yaml", "--run_dir", "run"]
    variables_ = environment(**dict(zip(names, given, strict=True)))
    done = subprocess.run([*words, *run], cwd=tmp_path, env=variables_, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert '"world_size": 2' in (tmp_path / "run" / "env.json").read_text()
