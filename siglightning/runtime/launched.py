"""How many processes a launcher has started, and where: torchrun and srun put it into the environment."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

# Names that Slurm gives the jobs of `salloc` and `srun --pty bash`: a shell to type in.
_SHELLS = ("bash", "interactive")


@dataclass(frozen=True)
class Launched:
    """What a launcher has started.

    Attributes:
        launcher: ``torchrun`` or ``srun``.
        nodes: machines.
        per_node: processes on each of them.
        variables: the numbers as the launcher has put them into the environment, for messages.
    """

    launcher: str
    nodes: int
    per_node: int
    variables: str

    @property
    def processes(self) -> int:
        """Processes of the whole run."""
        return self.nodes * self.per_node

    def __str__(self) -> str:
        return f"{self.launcher} started {self.per_node} on each of {self.nodes} nodes ({self.variables})"


def launched_by(environment: Mapping[str, str]) -> Launched | None:
    """Whoever started this process besides others.

    torchrun comes first, since it runs under srun, too: one agent on each node.

    Args:
        environment: of this process.

    Returns:
        ``None`` for a command that was typed, or stands in a script, by itself; within a Slurm job as well.

    Raises:
        ValueError: the nodes have different numbers of processes.
    """
    if "TORCHELASTIC_RUN_ID" in environment:
        return _by_torchrun(environment)
    return _by_srun(environment) if _is_srun(environment) else None


def is_plain_within_slurm(environment: Mapping[str, str]) -> bool:
    """Whether Slurm's variables stand in the environment although neither srun nor torchrun started this process."""
    return "SLURM_JOB_ID" in environment and launched_by(environment) is None


def _by_torchrun(environment: Mapping[str, str]) -> Launched:
    names = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE")
    processes, per_node, nodes = (int(environment.get(name, "1")) for name in names)
    variables = ", ".join(f"{name} {environment.get(name)}" for name in names)
    if per_node * nodes != processes:
        raise ValueError(
            f"Expected as many processes on every node, got {per_node} here and {processes} on {nodes} nodes "
            f"({variables}). Give every torchrun the same --nproc-per-node."
        )
    return Launched("torchrun", nodes, per_node, variables)


def _is_srun(environment: Mapping[str, str]) -> bool:
    """Whether this is a task of a step. The script of a batch job has a rank and numbers of tasks, too, but no step."""
    if "SLURM_STEP_ID" not in environment:
        return False
    is_shell = environment.get("SLURM_JOB_NAME") in _SHELLS
    return not (is_shell and _of_step(environment, "NUM_TASKS", "NTASKS") == "1")


def _by_srun(environment: Mapping[str, str]) -> Launched:
    tasks = int(_of_step(environment, "NUM_TASKS", "NTASKS"))
    nodes = int(_of_step(environment, "NUM_NODES", "NNODES"))
    variables = f"SLURM_STEP_NUM_TASKS {tasks}, SLURM_STEP_NUM_NODES {nodes}"
    counts = task_counts(environment.get("SLURM_STEP_TASKS_PER_NODE", str(tasks / nodes)))
    if len(counts) > 1 or tasks % nodes != 0:
        raise ValueError(
            f"Expected as many tasks on every node, got {tasks} tasks on {nodes} nodes ({variables}). Give the job, "
            "or srun, --nodes and --ntasks-per-node instead of --ntasks."
        )
    return Launched("srun", nodes, tasks // nodes, variables)


def _of_step(environment: Mapping[str, str], name: str, job_name: str) -> str:
    """A number of the step; what is said of the job may be more, as it is for a step on a part of it."""
    return environment.get(f"SLURM_STEP_{name}") or environment.get(f"SLURM_{job_name}") or "1"


def task_counts(tasks_per_node: str) -> set[str]:
    """The different numbers of tasks in Slurm's short form: ``2(x3),1`` has ``{"2", "1"}``."""
    return set(re.sub(r"\(x\d+\)", "", tasks_per_node).split(","))
