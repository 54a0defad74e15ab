"""Whether the processes of an evaluation read some pictures more than once."""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader, rank_zero_warn
from torch.utils.data import BatchSampler, DistributedSampler, RandomSampler, SequentialSampler

from siglightning.batch import Batch


def warn_of_untold_repeats(trainer: Trainer, loaders: Any, batch: Batch, dataloader_idx: int) -> None:
    """Warn that pictures count more than once: several processes read them, and no ``id`` tells repeats from others.

    Args:
        trainer: of the evaluation.
        loaders: those that Lightning evaluates.
        batch: the first one of a loader.
        dataloader_idx: its number.
    """
    if trainer.world_size == 1 or "id" in batch:
        return
    loader = CombinedLoader(loaders).flattened[dataloader_idx]
    count = num_repeats(loader, trainer.world_size)
    if count:
        rank_zero_warn(
            f"{count} pictures of evaluation set {dataloader_idx} come to {trainer.world_size} processes a second time "
            "and count each time, since its batches have no `id`. Give batches an `id`, by which repeats are dropped, "
            "use a sampler that gives each process its own share, or evaluate on one process."
        )


def num_repeats(loader: Any, world_size: int) -> int:
    """Samples that a loader's processes read beyond those of its data set, as far as torch's own samplers tell.

    A ``DistributedSampler`` repeats some so that all shares are equal; without one each process reads everything.
    """
    sampler = getattr(loader, "sampler", None)
    if isinstance(sampler, DistributedSampler):
        return max(0, sampler.total_size - len(sampler.dataset))  # type: ignore[arg-type]  # it has a length
    if isinstance(sampler, SequentialSampler | RandomSampler) and type(loader.batch_sampler) is BatchSampler:
        return (world_size - 1) * len(sampler)
    return 0
