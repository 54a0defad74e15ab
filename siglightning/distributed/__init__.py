"""Several processes: the ring and its watch, which know no Lightning, and the strategy that owns the ring's group."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from siglightning.distributed.strategy import RingDDPStrategy

__all__ = ["RingDDPStrategy"]


def __getattr__(name: str) -> Any:
    """Import the strategy when it is asked for: the losses use the ring without Lightning."""
    if name == "RingDDPStrategy":
        from siglightning.distributed.strategy import RingDDPStrategy

        return RingDDPStrategy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
