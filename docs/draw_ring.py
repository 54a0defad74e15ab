"""Draw Figure 1 of the SigLIP paper from the schedule that the losses use: `python docs/draw_ring.py`.

Twelve pairs on three devices. Each panel is one hop; a square is the loss of one image and one text, and its colour the
device that computes it.
"""

from pathlib import Path

import matplotlib as mpl

mpl.use("agg")
import matplotlib.pyplot as plt
from matplotlib.patches import Rectangle

from siglightning.distributed.ring import Ring

DEVICES, EACH = 3, 4
COLOURS = ("#4477aa", "#ee6677", "#228833")


def draw_hop(axis: plt.Axes, hop: int) -> None:
    """The whole matrix of 12 x 12 logits: done, computed now, still to come."""
    for rank in range(DEVICES):
        ring = Ring(rank, DEVICES)
        for past in range(hop + 1):
            fill_block(axis, rank, ring.owner(past), is_now=past == hop)
    for edge in range(DEVICES * EACH + 1):
        width = 1.4 if edge % EACH == 0 else 0.3
        axis.axhline(edge, color="black", linewidth=width)
        axis.axvline(edge, color="black", linewidth=width)
    axis.set(xlim=(0, DEVICES * EACH), ylim=(DEVICES * EACH, 0), aspect="equal", title=f"hop {hop}")
    middles = [EACH * device + EACH / 2 for device in range(DEVICES)]
    axis.set_xticks(middles, [f"texts of {device}" for device in range(DEVICES)])
    axis.set_yticks(middles, [f"device {device}\nimages" for device in range(DEVICES)] if hop == 0 else [])
    axis.tick_params(length=0)


def fill_block(axis: plt.Axes, rank: int, owner: int, *, is_now: bool) -> None:
    corner = owner * EACH, rank * EACH
    axis.add_patch(Rectangle(corner, EACH, EACH, color=COLOURS[rank], alpha=0.85 if is_now else 0.2, linewidth=0))
    for row in range(EACH if rank == owner else 0):  # the pairs: the only positives
        axis.text(corner[0] + row + 0.5, corner[1] + row + 0.5, "+", ha="center", va="center", color="white", size=11)


def main() -> None:
    figure, axes = plt.subplots(1, DEVICES, figsize=(12, 4.4), layout="constrained")
    for hop, axis in enumerate(axes):
        draw_hop(axis, hop)
    figure.suptitle("Images stay, texts move on by one device a hop (+: pairs; pale: done)")
    path = Path(__file__).parent / "images" / "ring.png"
    figure.savefig(path, dpi=110)
    print(path)


if __name__ == "__main__":
    main()
