"""Parameters and gradients that the golden numbers and the tests of our optimizers share, without storing them."""

import numpy as np

STEPS, RUN, WARMUP = 60, 100, 6  # of a run of 100 steps the first 60: Adafactor's beta2 reaches .95 at step 43
LR, WEIGHT_DECAY = 0.02, 0.01
STORED_STEPS = (1, 2, 3, 5, 8, 13, 21, 34, 42, 50, 60)
STORED_ENTRIES = 6  # of a tensor
# name: shape, factor on the rate, factor on the decay. Two sides of at least 32 are factored by Adafactor.
PARAMETERS = {
    "image_tower.weight": ((33, 40), 0.1, 0.0),  # pre-trained, not locked (SigLIP paper, section 4.5)
    "text_tower.weight": ((40, 33), 1.0, 1.0),
    "text_tower.attention": ((35, 3, 34), 1.0, 1.0),  # factored over its first and last dimension
    "text_tower.narrow": ((5, 64), 1.0, 1.0),  # not factored
    "text_tower.bias": ((9,), 1.0, 0.0),
}


def value(name: str, step: int) -> np.ndarray:
    """Entries in [-1, 1) of a parameter (step 0) or of its gradient (steps 1, 2, ...), fp32.

    Made of whole numbers and one division, so that every machine has the same bits.
    """
    number, shape = [*PARAMETERS].index(name), PARAMETERS[name][0]
    index = np.arange(np.prod(shape), dtype=np.int64)
    mixed = (index * 7919 + index * index * 31 + number * 104729 + step * (15485863 + 613 * index)) % 2003
    return (mixed / 1001.5 - 1).astype(np.float32).reshape(shape)


def entries(size: int) -> np.ndarray:
    """Which entries of a tensor are stored, by flat index."""
    return np.linspace(0, size - 1, STORED_ENTRIES).astype(int)
