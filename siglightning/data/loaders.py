"""What torch's loaders lack: a loader that resumes by its sampler, and workers that do not copy memory."""

import gc
from typing import Any

from torch.utils.data import DataLoader

from siglightning.data.collate import Sample


class ResumableLoader(DataLoader[Sample]):
    """A loader whose sampler knows by itself where to begin.

    Lightning warns about every mid-epoch resume of a loader that has no state of its own, and asks for these two
    methods. There is nothing to keep in them.
    """

    def state_dict(self) -> dict[str, Any]:
        """Nothing."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to do."""


def share_memory(worker: int) -> None:
    """Keep a loading process from writing on all objects that it shares with the process that it was forked from.

    The first full collection would write into the header of each, and the kernel then copies its page: 130 MiB.
    """
    gc.freeze()
