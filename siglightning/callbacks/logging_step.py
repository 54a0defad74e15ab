"""When monitors log: at the steps whose metrics the trainer hands to its loggers."""

from lightning.pytorch import Trainer


def is_logging_step(trainer: Trainer, last_logged: int) -> bool:
    """Whether the optimizer step just done is one that the loggers see, and was not logged before.

    Accumulated micro-batches share one step, of which the first after the update counts.

    Args:
        trainer: in ``on_train_batch_end``.
        last_logged: the step at which the caller logged last, -1 for never.
    """
    interval: int = trainer.log_every_n_steps  # type: ignore[attr-defined]  # its logger connector sets it
    step = trainer.global_step
    return interval > 0 and step > 0 and step % interval == 0 and step != last_logged
