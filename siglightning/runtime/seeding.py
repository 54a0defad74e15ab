"""Seeds that are a pure function of a run's seed and of counters.

A random stream that is derived from *where* it is used - (seed, epoch, sample) for an augmentation, (seed, step,
slice) for dropout - needs no saved state: a resumed run, or one with another number of workers, draws the same
numbers. Plain integer arithmetic, so the values are the same on every platform and in every version.
"""

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15  # 2**64 / golden ratio, the increment of SplitMix64
_ODD = 0xD1342543DE82EF95  # multiplies the state, so that the seed and a counter do not commute


def _mix(value: int) -> int:
    """The finaliser of SplitMix64 (Steele, Lea and Flood 2014, figure 17): a bijection of 64-bit integers."""
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & _MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & _MASK
    return value ^ (value >> 31)


def step_seed(seed: int, *counters: int) -> int:
    """Derive the seed of one random stream from a run's seed and the counters that name the stream.

    Order and number of the counters count: ``(1, 2)``, ``(2, 1)`` and ``(1, 2, 0)`` give unrelated seeds.

    Args:
        seed: the run's seed; any integer, taken modulo 2**64.
        *counters: integers such as an epoch, a step or a sample's index, each taken modulo 2**64.

    Returns:
        An integer from 0 to 2**63 - 1: it fits ``torch.manual_seed``, NumPy's generators and an int64 tensor.
    """
    state = _mix((seed + _GOLDEN) & _MASK)
    for counter in counters:
        state = _mix((state * _ODD + _mix((counter + _GOLDEN) & _MASK)) & _MASK)
    return _mix(state) >> 1
