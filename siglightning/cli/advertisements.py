"""What Lightning prints that is of no use to whoever trains."""

import logging
import warnings


def silence_advertisements() -> None:
    """Drop the log lines with which Lightning recommends its services, and a deprecation that users cannot act on."""
    warnings.filterwarnings("ignore", message=".*LeafSpec.*")  # between Lightning and torch, nobody's to mend here
    warnings.filterwarnings("ignore", message=".*in eval mode at the start of training.*")  # frozen towers are meant so
    warnings.filterwarnings("ignore", message=".*overridden .on_before_batch_transfer. in .LightningModule. but.*")
    # Advice for batch scripts, given wherever Slurm is installed; inside one, `as_launched` says what it means.
    warnings.filterwarnings("ignore", message=".*`srun` command is available.*")
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    if _is_no_advertisement not in logger.filters:
        logger.addFilter(_is_no_advertisement)


def _is_no_advertisement(record: logging.LogRecord) -> bool:
    return "Tip: " not in str(record.msg)
