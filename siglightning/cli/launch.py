"""Devices, nodes and strategy as the launcher has it, so that one configuration runs by itself, torchrun and srun."""

import os
from typing import Any

import torch
from lightning.fabric.plugins import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from typing_extensions import override

from siglightning.distributed.strategy import NAME as RING
from siglightning.runtime.launched import Launched, is_plain_within_slurm, launched_by
from siglightning.runtime.processes import notice

_ALL = (None, "auto", -1, "-1")  # what says nothing of how many devices
_OF_ONE_PROCESS = ("single_device", "single_xla", "SingleDeviceStrategy", "SingleDeviceXLAStrategy")


class StepEnvironment(SLURMEnvironment):
    """The tasks of one ``srun``. Lightning's looks at the whole job, which may have more tasks and other nodes.

    It never asks Slurm to run the job again: that is the script's business, once all processes have saved and ended.
    """

    def __init__(self, launched: Launched) -> None:
        self._launched = launched
        super().__init__(auto_requeue=False)

    @property
    @override
    def main_address(self) -> str:
        """Where rank 0 is: the first node of the step."""
        nodes = os.environ.get("SLURM_STEP_NODELIST")
        if nodes is not None and "MASTER_ADDR" not in os.environ:
            os.environ["MASTER_ADDR"] = self.resolve_root_node_address(nodes)
        return super().main_address

    @override
    def world_size(self) -> int:
        return self._launched.processes

    @override
    def validate_settings(self, num_devices: int, num_nodes: int) -> None:
        """Nothing: :func:`require_agreement` has done it by the step's numbers."""

    @staticmethod
    @override
    def _validate_srun_variables() -> None:
        """Nothing: a step has tasks on each node even where nobody asked for so many a node."""


def require_agreement(trainer: Any) -> None:
    """Refuse numbers of a parsed configuration that are not the launcher's, before anything is built.

    ``devices: auto`` and ``num_nodes: 1``, their defaults, say nothing: the launcher's numbers are taken.

    Args:
        trainer: its configuration.

    Raises:
        ValueError: other devices or nodes than those that were started, or a strategy that trains each process alone.
    """
    launched = launched_by(os.environ)
    if launched is None:
        return
    if _count(trainer.devices) not in (None, launched.per_node) or trainer.num_nodes not in (1, launched.nodes):
        raise ValueError(
            f"Expected trainer.devices {launched.per_node} and trainer.num_nodes {launched.nodes}, as {launched}, got "
            f"{trainer.devices} and {trainer.num_nodes}. Leave both out, or start as many processes as they say."
        )
    strategy = trainer.strategy if isinstance(trainer.strategy, str) else getattr(trainer.strategy, "class_path", "")
    if launched.processes > 1 and strategy.rpartition(".")[2] in _OF_ONE_PROCESS:
        raise ValueError(
            f"Expected a strategy for {launched.processes} processes, as {launched}, got trainer.strategy {strategy}: "
            f"each process would train a model of its own. Leave it out, or use `trainer.strategy: {RING}`."
        )


def as_launched(trainer: dict[str, Any]) -> dict[str, Any]:
    """What the settings of a Trainer leave open and the launcher has decided.

    Without a strategy several processes train by ``ring_ddp``, whoever starts them: they are meant to train one model,
    its losses are exact there, and it comes back where torchrun starts processes again.

    Args:
        trainer: its settings, plugins built.

    Returns:
        The settings to change.
    """
    launched = launched_by(os.environ)
    changed = {"plugins": _with_environment(trainer["plugins"], launched)}
    if launched is not None:
        devices = trainer["devices"]
        changed |= {"devices": devices if _count(devices) else launched.per_node, "num_nodes": launched.nodes}
    if trainer["strategy"] == "auto" and _processes(trainer | changed) > 1:
        changed["strategy"] = RING
    return changed


def _with_environment(plugins: Any, launched: Launched | None) -> Any:
    """Plugins with the environment where Lightning would take another: it does not tell steps of a job from the job."""
    present = list(plugins) if isinstance(plugins, list | tuple) else [] if plugins is None else [plugins]
    if any(isinstance(plugin, ClusterEnvironment) for plugin in present):
        return plugins
    if launched is not None and launched.launcher == "srun":
        return [*present, StepEnvironment(launched)]
    if not is_plain_within_slurm(os.environ):
        return plugins
    tasks = os.environ.get("SLURM_NTASKS", "1")
    if tasks != "1":
        notice(f"Not started by srun: one command, although the Slurm job has {tasks} tasks.")
    return [*present, LightningEnvironment()]


def _processes(trainer: dict[str, Any]) -> int:
    """How many processes a Trainer will have."""
    count = _count(trainer["devices"])
    if count is None:
        count = torch.cuda.device_count() if trainer["accelerator"] in ("auto", "gpu", "cuda") else 1
    return max(1, count) * int(trainer["num_nodes"])


def _count(devices: Any) -> int | None:
    """How many devices a setting names; ``None`` where it leaves that open."""
    if devices in _ALL:
        return None
    if isinstance(devices, str):
        return len(devices.strip(", ").split(",")) if "," in devices else int(devices)
    return len(devices) if isinstance(devices, list | tuple) else int(devices)
