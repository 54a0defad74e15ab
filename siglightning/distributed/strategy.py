"""DistributedDataParallel with a ring: the Lightning strategy that gives contrastive losses their process group."""

import atexit
import os
from datetime import timedelta
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.fabric.plugins import CheckpointIO, ClusterEnvironment
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.plugins import Precision
from lightning.pytorch.strategies import DDPStrategy, StrategyRegistry
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher
from torch import Tensor
from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]  # public, but not re-exported
from torch.nn.parallel import DistributedDataParallel
from typing_extensions import override

from siglightning.distributed.launcher import PatientLauncher
from siglightning.distributed.sentinel import GRACE_S
from siglightning.distributed.watch import RingError, is_of_transfer, naming_the_silent, report_fault, set_step
from siglightning.runtime.signals import StoppedError

NAME = "ring_ddp"


class RingDDPStrategy(DDPStrategy):
    """DDP whose contrastive losses see the negatives of all processes, round a ring with a time-out of its own.

    Registered as ``ring_ddp``. Whatever happens in every step, the ring and then the averaging of gradients, has a
    process group to itself, whose time-out can be much shorter than that of the group in which the first process
    writes checkpoints while the others wait. The ring's transfers are all finished before the backward pass begins, so
    they never run beside those of gradients.

    Args:
        accelerator: set by the Trainer.
        parallel_devices: set by the Trainer.
        cluster_environment: who launched the processes; found by the Trainer.
        checkpoint_io: how checkpoints are written.
        precision_plugin: set by the Trainer.
        gradient_as_bucket_view: gradients live in the buckets that are communicated, which saves their size once.
        static_graph: the same parameters are used in every step; allows DDP a few optimizations.
        find_unused_parameters: look for parameters without a gradient after each forward pass.
        bucket_cap_mb: size of DDP's buckets in MiB; ``None``: torch's choice.
        process_group_backend: ``gloo``, ``nccl`` ...; ``None``: by device.
        timeout_s: of every other communication, in seconds.
        ring_timeout_s: after so many seconds a step that stands still has ended, with an error that names the rank to
            blame; the last 5 of them are for finding it.
        start_method: how processes are started where no launcher has done so.

    Attributes:
        ring_group: all processes; ``None`` on a single process, and before they are connected.
        ring_timeout: of every transfer within a step.

    Raises:
        ValueError: a time-out is too short.
    """

    strategy_name = NAME

    # Every default stands in the signature: jsonargparse fills in DistributedDataParallel's own for hidden ones.
    def __init__(
        self,
        accelerator: Accelerator | None = None,
        parallel_devices: list[torch.device] | None = None,
        cluster_environment: ClusterEnvironment | None = None,
        checkpoint_io: CheckpointIO | None = None,
        precision_plugin: Precision | None = None,
        *,
        gradient_as_bucket_view: bool = True,
        static_graph: bool = False,
        find_unused_parameters: bool = False,
        bucket_cap_mb: int | None = None,
        process_group_backend: str | None = None,
        timeout_s: float = 1800.0,
        ring_timeout_s: float = 120.0,
        start_method: Literal["popen", "spawn", "fork", "forkserver"] = "popen",
    ) -> None:
        if ring_timeout_s <= GRACE_S or timeout_s <= 0:
            raise ValueError(
                f"`ring_timeout_s` must be more than the {GRACE_S:g} s that finding a silent rank takes, and "
                f"`timeout_s` more than 0, got {ring_timeout_s} and {timeout_s}."
            )
        super().__init__(
            accelerator=accelerator,
            parallel_devices=parallel_devices,
            cluster_environment=cluster_environment,
            checkpoint_io=checkpoint_io,
            precision_plugin=precision_plugin,
            process_group_backend=process_group_backend,
            timeout=timedelta(seconds=timeout_s),
            start_method=start_method,
            gradient_as_bucket_view=gradient_as_bucket_view,
            static_graph=static_graph,
            find_unused_parameters=find_unused_parameters,
            bucket_cap_mb=bucket_cap_mb,
        )
        self.ring_timeout = timedelta(seconds=ring_timeout_s - GRACE_S)
        self.ring_group: dist.ProcessGroup | None = None

    @override
    def setup_environment(self) -> None:
        """Connect the processes, then give the ring its group: one collective call of all processes."""
        super().setup_environment()
        if self.world_size > 1 and self.ring_group is None:
            group = dist.new_group(timeout=self.ring_timeout, group_desc="siglightning_ring")
            assert isinstance(group, dist.ProcessGroup)  # every process is a member
            self.ring_group = self._ddp_kwargs["process_group"] = group

    @override
    def configure_ddp(self) -> None:
        """Wrap the model, and settle at once in which order its gradients are averaged; see :func:`settle_buckets`."""
        super().configure_ddp()
        # With `find_unused_parameters` the order never changes; a static graph is that of the first backward pass.
        if not (self._ddp_kwargs["find_unused_parameters"] or self._ddp_kwargs["static_graph"]):
            assert isinstance(self.model, DistributedDataParallel)
            settle_buckets(self.model)

    @override
    def backward(self, closure_loss: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """As DDP's; where the averaging fails, the error names the rank to blame."""
        with naming_the_silent(self.ring_group):
            return super().backward(closure_loss, *args, **kwargs)

    @override
    def on_exception(self, exception: BaseException) -> None:
        """Tell the other processes why this one stops, so that their errors say it.

        Raises:
            RingError: it stops because a transfer outside the ring failed; the message names the rank to blame.
        """
        super().on_exception(exception)
        if isinstance(exception, RingError | StoppedError):  # the others know, or stop as well
            return
        if is_of_transfer(exception):
            with naming_the_silent(self.ring_group):
                raise exception
        if self.lightning_module is not None and self.ring_group is not None:
            set_step(self.ring_group, self.lightning_module.global_step)
        report_fault(self.ring_group, exception)

    @override
    def _configure_launcher(self) -> None:
        super()._configure_launcher()
        if isinstance(self._launcher, _SubprocessScriptLauncher):
            assert self.cluster_environment is not None  # super() has used it
            self._launcher = PatientLauncher(self.cluster_environment, self.num_processes, self.num_nodes)

    @override
    def setup_distributed(self) -> None:
        """Connect the processes; under torchrun through keys that belong to this attempt.

        A torchrun agent keeps its store when it restarts its workers, and the store keeps the addresses of the dead:
        without a prefix the new ones would try to reach them (pytorch issues 135712, 167288).
        """
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT")
        agent_has_store = os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True"
        if attempt is not None and agent_has_store and not dist.is_initialized():
            self.set_world_ranks()
            self._connect_attempt(attempt)
        super().setup_distributed()  # leaves an initialized group alone
        if not dist.is_initialized():
            return
        # Lightning does so for NCCL alone; a gloo process that ends with its group alive may abort.
        atexit.register(_destroy_process_groups)

    def _connect_attempt(self, attempt: str) -> None:
        environment = self.cluster_environment
        assert environment is not None  # the Trainer has set it
        assert self._timeout is not None
        store = TCPStore(
            environment.main_address, environment.main_port, self.world_size, is_master=False, timeout=self._timeout
        )
        dist.init_process_group(
            self._get_process_group_backend(),
            store=PrefixStore(f"attempt_{attempt}", store),
            rank=self.global_rank,
            world_size=self.world_size,
            timeout=self._timeout,
            device_id=self.root_device if self.root_device.type != "cpu" else None,
        )

    @override
    def teardown(self) -> None:
        """Let the ring go; the processes stay connected for what comes after."""
        if self.ring_group is not None:
            dist.destroy_process_group(self.ring_group)
            self.ring_group = self._ddp_kwargs["process_group"] = None
        super().teardown()


def settle_buckets(model: DistributedDataParallel) -> None:
    """Let DDP put gradients into their final buckets before the first step; one all-reduce of zeros of their size.

    By itself it does so after the first backward pass, in the order in which gradients arrived. An undisturbed run then
    averages a step in the new order that a run resumed there averages in the first one, and from three processes on a
    sum in another order rounds otherwise. Now the order is that of the parameters, last ones first, in every start.
    """
    trained = [parameter for parameter in model.module.parameters() if parameter.requires_grad]
    with torch.enable_grad():
        nothing = torch.stack([(parameter.flatten()[:1] * 0).sum().float() for parameter in trained]).sum()
    model.reducer.prepare_for_backward([])
    nothing.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
    model.reducer._rebuild_buckets()
    for parameter in trained:
        parameter.grad = None


def group_of(strategy: Any) -> dist.ProcessGroup | None:
    """The processes that share a batch under a Trainer's strategy.

    Args:
        strategy: of the Trainer, once processes are connected.

    Returns:
        The ring's own group under ``ring_ddp``, the group of all processes under any other form of DDP, and ``None``
        for a single process.
    """
    if getattr(strategy, "world_size", 1) == 1:
        return None
    return getattr(strategy, "ring_group", None) or dist.group.WORLD


def require_whole_parameters(strategy: Any, world_size: int) -> None:
    """Refuse strategies that share out parameters; some of them, as DeepSpeed's, derive from DDP's.

    Raises:
        ValueError: several processes, but neither DDP nor a kind of ``ring_ddp``.
    """
    if world_size > 1 and not (type(strategy) is DDPStrategy or isinstance(strategy, RingDDPStrategy)):
        raise ValueError(
            f"Contrastive training on {world_size} processes needs a copy of the model on each so far: expected "
            f"`trainer.strategy: {NAME}`, got {type(strategy).__name__}."
        )


def _destroy_process_groups() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


if NAME not in StrategyRegistry:
    StrategyRegistry.register(NAME, RingDDPStrategy, "DDP with a ring for contrastive losses")
