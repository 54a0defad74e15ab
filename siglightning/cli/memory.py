"""What to turn when memory runs out."""

import torch

_OF_THE_CPU = "DefaultCPUAllocator: can't allocate memory"  # a plain RuntimeError


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or _OF_THE_CPU in str(error)


def memory_remedy(error: BaseException) -> str:
    """The settings that lower the peak, those first that change nothing else."""
    return (
        "Out of memory. In this order: lower the network's `micro_batch_size` (a divisor of the local batch; gradients "
        "stay those of the whole batch), `data.eval_batch_size` if it happened in an evaluation, and the loss's "
        "`chunk_size`; use `--trainer.precision bf16-mixed`; freeze a tower; lower `data.global_batch_size`, which "
        "changes what is learnt. `siglightning plan` says what a run needs. "
        f"({str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__})"
    )
