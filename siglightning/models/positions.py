"""Tables of position embeddings of vision transformers, carried over to pictures of another size."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from siglightning.models.towers import ImageTower

_TABLE = re.compile(r"(^|\.)pos(ition(al)?)?_?embed[^.]*(\.weight)?$")  # what timm, open_clip and transformers say


@dataclass(frozen=True)
class PatchGrid:
    """The patches that an image tower cuts its pictures into.

    Attributes:
        weight: name of the weight ``[D, 3, patch, patch]`` that embeds them, within the tower.
        patch: side of a patch, in pixels.
        side: patches along the side of a picture.
    """

    weight: str
    patch: int
    side: int

    @classmethod
    def of(cls, tower: ImageTower) -> "PatchGrid | None":
        """The grid of a tower whose first convolution cuts pictures into squares side by side; else ``None``."""
        for name, layer in tower.named_modules():
            if isinstance(layer, nn.Conv2d):
                patch = int(layer.kernel_size[0])
                is_patches = layer.in_channels == 3 and patch > 1 and layer.kernel_size == layer.stride
                return cls(f"{name}.weight", patch, tower.image_size // patch) if is_patches else None
        return None


def is_position_table(name: str) -> bool:
    """Whether a weight of an image tower is, by its name, a table of absolute positions."""
    return _TABLE.search(name) is not None


def old_side(table: Tensor, wanted: Tensor, side: int) -> int | None:
    """Patches along the side of the pictures that a table was made for.

    Args:
        table: ``[T, D]`` or ``[1, T, D]``, a row for each token, those that are no patches (class token) first.
        wanted: a table of the new size, with as many such rows.
        side: patches along the side of the new pictures.

    Returns:
        The side, or ``None`` where the rows are not those of a square grid or the tables differ otherwise.
    """
    if table.ndim not in (2, 3) or table.ndim != wanted.ndim or table.shape[-1] != wanted.shape[-1]:
        return None
    patches = table.shape[-2] - (wanted.shape[-2] - side**2)
    before = math.isqrt(max(0, patches))
    is_square = 0 < patches <= table.shape[-2] and before**2 == patches
    return before if is_square and table.numel() == table.shape[-2] * table.shape[-1] else None


def resize_positions(table: Tensor, old: int, side: int) -> Tensor:
    """A table for a grid of ``side x side`` patches out of one for ``old x old``.

    Interpolated bicubically, with a low-pass filter where the grid shrinks (antialias), as timm and open_clip do; the
    SigLIP paper (section 4.6) continues training at other resolutions and does not say how. Rows in front of the
    patches stay. Computed in fp32.

    Args:
        table: ``[P + old^2, D]`` or ``[1, P + old^2, D]``.
        old: patches along the side before.
        side: patches along the side after.

    Returns:
        The table with ``P + side^2`` rows, in its own type.
    """
    from timm.layers import resample_abs_pos_embed  # not every tower should load timm

    rows = table.reshape(1, *table.shape[-2:])
    prefix = rows.shape[1] - old**2
    resized: Tensor = resample_abs_pos_embed(rows, [side, side], [old, old], num_prefix_tokens=prefix)
    return resized.reshape(*table.shape[:-2], -1, table.shape[-1])


def resize_tables(wanted: Mapping[str, Tensor], given: dict[str, Tensor], grid: PatchGrid) -> list[str]:
    """Bring the tables of positions among ``given`` weights to the sizes of those ``wanted``, in place.

    Args:
        wanted: an image tower's weights.
        given: those of another size of it, by the same names.
        grid: the patches of the tower.

    Returns:
        Which were resized, and from what to what.
    """
    resized = []
    for name, tensor in wanted.items():
        table = given.get(name)
        if table is None or table.shape == tensor.shape or not is_position_table(name):
            continue
        before = old_side(table, tensor, grid.side)
        if before is not None:
            given[name] = resize_positions(table, before, grid.side)
            resized.append(f"{name}, {before} x {before} to {grid.side} x {grid.side} patches")
    return resized


def load_resized(tower: ImageTower, weights: dict[str, Tensor]) -> None:
    """Load the weights of a tower that was made for pictures of another size."""
    grid = PatchGrid.of(tower)
    if grid is not None:
        resize_tables(tower.state_dict(), weights, grid)
    tower.load_state_dict(weights)
