"""How long a run is, given in examples: what a paper states, and what a change of the batch leaves alone."""

from typing import Any

from siglightning.runtime.processes import notice


def resolve_length(config: Any) -> None:
    """Turn ``examples_seen`` of a parsed configuration into ``trainer.max_steps``.

    A step sees ``global_batch_size * accumulate_grad_batches`` examples, and the last one may see more than are left:
    ``max_steps = ceil(examples_seen / that)``. An explicit ``trainer.max_steps`` or ``trainer.max_epochs`` wins, with a
    notice. The configuration that is saved then holds the steps alone.

    Raises:
        ValueError: not a positive number, or a data module without ``global_batch_size``.
    """
    examples, config.examples_seen = config.examples_seen, None
    if examples is None:
        return
    trainer = config.trainer
    given = {"max_steps": trainer.max_steps, "max_epochs": trainer.max_epochs}
    explicit = [f"trainer.{name} {value}" for name, value in given.items() if value not in (None, -1)]
    if explicit:
        notice(f"{' and '.join(explicit)}: the length of the run is not that of examples_seen {examples:,}")
        return
    trainer.max_steps = steps_of(examples, batch_of(config) * trainer.accumulate_grad_batches)


def steps_of(examples_seen: int, batch: int) -> int:
    """Steps of ``batch`` examples after which at least ``examples_seen`` were seen.

    Raises:
        ValueError: fewer than one.
    """
    if examples_seen < 1:
        raise ValueError(f"examples_seen expects the number of examples of the whole run, got {examples_seen}.")
    return -(-examples_seen // batch)


def batch_of(config: Any) -> int:
    """``data.init_args.global_batch_size`` of a parsed configuration.

    Raises:
        ValueError: there is none.
    """
    settings = config.data.get("init_args") if config.data is not None else None
    size = None if settings is None else settings.get("global_batch_size")
    if size is None:
        raise ValueError(
            "examples_seen counts batches, got a data module without `global_batch_size`. Set `trainer.max_steps`."
        )
    return int(size)
