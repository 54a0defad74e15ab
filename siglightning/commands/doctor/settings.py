"""What is trained, how fast, and for how long."""

from collections.abc import Iterator
from typing import Any

from siglightning.commands.doctor.case import Case
from siglightning.commands.doctor.findings import Finding
from siglightning.optim import build_scheduler, describe_groups, group_table, parameter_groups
from siglightning.tasks import ContrastiveTask

_NO_DECAY = "weight_decay_mult: 0"


def check_groups(case: Case) -> Iterator[Finding]:
    """Show the table of parameter groups, and what in it is rarely meant."""
    task, optimizer = case.base_task, case.optimizer
    groups = parameter_groups(task, task.rules, task.scalar_lr_mult, task.parts())
    rows = group_table(groups, optimizer)
    total = sum(row["parameters"] for row in rows)
    trained = sum(row["parameters"] for row in rows if not row["frozen"])
    text = f"{trained:,} of {total:,} parameters are trained, in {len(rows)} groups by {type(optimizer).__name__}"
    yield Finding("ok", text, lines=describe_groups(groups, optimizer).splitlines(), values={"groups": rows})
    still = [row["name"] for row in rows if not row["frozen"] and not row["lr"]]
    if still:
        remedy = "Give it a learning rate, or freeze it (`freeze: true`), which also saves its gradients."
        yield Finding("warning", f"trained at a learning rate of 0: {', '.join(still)}", remedy)
    yield from _decayed(case, groups, rows)


def _decayed(case: Case, groups: Any, rows: list[dict[str, Any]]) -> Iterator[Finding]:
    """Weight decay on weights that were trained before (SigLIP paper, section 4.4: it does harm)."""
    if not isinstance(case.task, ContrastiveTask):
        return
    for tower in ("image_tower", "text_tower"):
        decay = [
            row["weight_decay"]
            for group, row in zip(groups, rows, strict=True)
            if row["weight_decay"] and any(name.startswith(f"network.{tower}.") for name in group.parameters)
        ]
        if decay and case.origin.trained(tower):
            yield Finding(
                "warning",
                f"weight decay of {max(decay):g} on the {tower}, which begins with trained weights",
                f"Add a rule before the others: {{pattern: 'network.{tower}', {_NO_DECAY}}}.",
                values={"tower": tower, "weight_decay": max(decay)},
            )


def check_length(case: Case) -> Iterator[Finding]:
    """How many steps, examples and epochs, how long the rate rises, and how often is validated."""
    task, trainer, data = case.base_task, case.trainer, case.data
    steps = case.total_steps
    build_scheduler(case.optimizer, task.schedule, steps)  # refuses a rise that is longer than the run
    batch = data.global_batch_size * trainer.accumulate_grad_batches
    size, warmup = len(data.train_set), task.schedule.num_warmup_steps(steps)
    values = {"steps": steps, "examples": steps * batch, "epochs": steps * batch / size, "warmup_steps": warmup}
    text = (
        f"{steps:,} steps of {batch:,} = {steps * batch:,} examples = {steps * batch / size:.3g} epochs of {size:,}, "
        f"{warmup:,} steps of rising rate"
    )
    if case.start_step:
        text += f"; goes on at step {case.start_step:,} of {case.run_dir}"
    yield Finding("ok", text, values=values)
    every = _validation_interval(case)
    if every > steps:
        yield Finding(
            "warning",
            f"no validation within {steps:,} steps: one comes every {every:,}",
            "Lower `trainer.val_check_interval`, or `trainer.check_val_every_n_epoch`.",
            values={"every": every},
        )


def _validation_interval(case: Case) -> int:
    """Optimizer steps between two validations."""
    trainer, accumulated = case.trainer, case.trainer.accumulate_grad_batches
    interval, epochs = trainer.val_check_interval, trainer.check_val_every_n_epoch
    an_epoch = case.data.steps_per_epoch
    batches = interval if isinstance(interval, int) else max(1, int(an_epoch * float(interval or 1.0)))
    if epochs is not None and (epochs > 1 or not isinstance(interval, int)):
        batches = (epochs - 1) * an_epoch + batches
    return -(-int(batches) // accumulated)
