"""The loss of the run, over as many processes, against the whole matrix in float64."""

from collections.abc import Iterator

from torch import Tensor

from siglightning.commands.doctor.case import Case
from siglightning.commands.doctor.findings import Finding
from siglightning.distributed.local import RanksError, run_ranks
from siglightning.losses import self_test

MAX_PROCESSES = 4  # started here, however many the run has
DEADLINE_S, TIMEOUT_S = 300.0, 120.0  # a machine that is busy with other work needs a minute to start them
BOUND = 1e-10  # relative, in float64, whose rounding is 1e-16; a wrong sign or pair gives 1e-2 or more


def check_ring(case: Case) -> Iterator[Finding]:
    """Value and every gradient of the loss as the run computes it, on made-up embeddings."""
    task = case.contrastive
    processes = min(case.world_size, MAX_PROCESSES)
    settings = self_test.Settings(task.loss_name, task.match, task.comm)
    try:
        parts = [self_test.whole_part(settings)] if processes == 1 else _on_ranks(processes, settings)
    except RanksError as error:
        told = next((text.strip().splitlines()[-1] for text in error.errors if text), f"no answer in {DEADLINE_S:g} s")
        yield Finding(
            "error",
            f"{processes} processes cannot go round the ring: {told}",
            "Look at memory, firewalls and limits of processes; `python -m torch.distributed.run` must work here.",
        )
        return
    difference = self_test.largest_difference(parts, settings)
    of = f" of {case.world_size}" if processes < case.world_size else ""
    where = f"over {processes}{of} processes (gloo, CPU)" if processes > 1 else "in one process"
    text = f"{task.loss_name} loss and its gradients {where} equal the whole matrix in float64 to {difference:.0e}"
    values = {"processes": processes, "difference": difference, "comm": task.comm}
    if case.device.type != "cpu" and processes > 1:
        text += "; the devices' own transfers are not tried"
    if not difference <= BOUND:
        yield Finding(
            "error",
            text.replace("equal", "differ from").replace(" to ", " by "),
            "Do not train: report it with the versions of `env.json`, and train on one process meanwhile.",
            values=values,
        )
    else:
        yield Finding("ok", text, values=values)


def _on_ranks(processes: int, settings: self_test.Settings) -> list[list[Tensor]]:
    return run_ranks(processes, self_test.ring_part, settings, timeout_s=TIMEOUT_S, deadline_s=DEADLINE_S)
