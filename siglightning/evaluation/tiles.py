"""All pairs of two sets of embeddings, a tile of scores at a time."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

# Sides of a tile. On CPUs with wide vectors the product is up to a tenth faster than in tiles of 1,024, and 16 MiB of
# scores cost less than they gain (d = 512); on a GPU a tile must outlast the launch of the kernels that read it.
_CPU_SIDE, _GPU_SIDE = 2048, 8192


@dataclass(frozen=True, eq=False)
class Tile:
    """Scores of some rows with some columns, in the order of :class:`PairTiles`; good until the next tile is made.

    Attributes:
        rows: of the first side, sorted.
        columns: of the second side, sorted.
        scores: ``[r, c]`` dot products.
        matches: bool ``[r, c]``, where ids are equal; ``None`` where none can be.
    """

    rows: slice
    columns: slice
    scores: Tensor
    matches: Tensor | None


class Side:
    """Embeddings in an order in which equal ids stand together.

    Attributes:
        rows: ``[n, d]``, sorted; the embeddings themselves where they stood like that.
        labels: int64 ``[n]``, ascending, equal for equal ids.
        order: int64 ``[n]``, where each sorted row was.
    """

    def __init__(self, rows: Tensor, labels: Tensor, dtype: torch.dtype) -> None:
        self.order = labels.argsort(stable=True)
        self.labels = labels[self.order]
        is_sorted = bool((labels == self.labels).all())
        self.rows = (rows if is_sorted else rows[self.order]).to(dtype)

    def as_given(self, values: Tensor) -> Tensor:
        """Values of sorted rows, in the order in which the rows were given."""
        given = torch.empty_like(values)
        given[self.order] = values
        return given

    def spans(self, side: int) -> list[tuple[slice, int, int]]:
        """Stretches of up to ``side`` rows, each with its lowest and its highest label."""
        starts = range(0, len(self.labels), side)
        slices = [slice(start, min(start + side, len(self.labels))) for start in starts]
        lows = self.labels[::side].tolist()
        highs = self.labels[[span.stop - 1 for span in slices]].tolist()
        return list(zip(slices, lows, highs, strict=True))


class PairTiles:
    """The scores of N rows with M columns in tiles, of which only one exists at a time.

    Rows and columns are put into an order in which equal ids stand together, so that matches are found in the tiles
    along a staircase and no other tile need be compared with ids. Which scores a tile holds depends on N, M and the
    side of a tile alone, and it is computed by one process: scores are the same, to the bit, for any number of
    processes.

    Args:
        rows: ``[N, d]``; fp64 is kept, narrower types are computed in fp32.
        columns: ``[M, d]``, on the same device.
        row_ids: int64 ``[N]``.
        column_ids: int64 ``[M]``; equal ids match.
        side: rows and columns of a tile; by default what suits the device. Memory is two tiles, and a second copy of
            a side where its ids do not stand in the order of those of the rows.
        group: processes that all hold the same embeddings and share the tiles among them; ``None`` for a single one.

    Raises:
        ValueError: shapes that do not belong together, ids that are no integers, no rows, or a tile without any.
    """

    def __init__(
        self,
        rows: Tensor,
        columns: Tensor,
        row_ids: Tensor,
        column_ids: Tensor,
        side: int | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        _check_shapes(rows, columns, row_ids, column_ids, side)
        self.dtype = torch.float64 if torch.float64 in (rows.dtype, columns.dtype) else torch.float32
        self.device, self.group = rows.device, group
        row_labels, column_labels = _by_first_appearance(row_ids.to(self.device), column_ids.to(self.device))
        self.rows, self.columns = Side(rows, row_labels, self.dtype), Side(columns, column_labels, self.dtype)
        self.side = side or (_CPU_SIDE if self.device.type == "cpu" else _GPU_SIDE)

    def __iter__(self) -> Iterator[Tile]:
        """All tiles of this process."""
        return self._tiles(self.side, only_matching=False)

    def matching(self) -> Iterator[Tile]:
        """Smaller tiles, those in which there may be a match: the staircase of matches is thin."""
        return self._tiles(max(1, self.side // 8), only_matching=True)

    def reduced(self, values: Tensor, operation: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> Tensor:
        """What all processes have found together, on each of them: in place."""
        if self.group is not None:
            dist.all_reduce(values, operation, group=self.group)
        return values

    @torch.no_grad()
    def _tiles(self, side: int, only_matching: bool) -> Iterator[Tile]:
        rank, size = (0, 1) if self.group is None else (self.group.rank(), self.group.size())
        columns = self.columns.spans(side)
        buffer = torch.empty(side * side, dtype=self.dtype, device=self.device)
        for rows, low, high in self.rows.spans(side)[rank::size]:
            block, labels = self.rows.rows[rows], self.rows.labels[rows, None]
            for span, first, last in columns:
                may_match = first <= high and low <= last
                if only_matching and not may_match:
                    continue
                scores = buffer[: len(block) * (span.stop - span.start)].view(len(block), -1)
                with exact_products():  # within the loop, lest the caller's own products be changed, too
                    torch.mm(block, self.columns.rows[span].T, out=scores)
                yield Tile(rows, span, scores, labels == self.columns.labels[span] if may_match else None)


@contextmanager
def exact_products() -> Iterator[None]:
    """fp32 products in fp32, whatever ``torch.set_float32_matmul_precision`` was told for training."""
    backends: tuple[Any, ...] = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
    before = [backend.fp32_precision for backend in backends]
    if before == ["ieee", "ieee"]:
        yield
        return
    try:
        for backend in backends:
            backend.fp32_precision = "ieee"
        yield
    finally:
        for backend, precision in zip(backends, before, strict=True):
            backend.fp32_precision = precision


def _by_first_appearance(row_ids: Tensor, column_ids: Tensor) -> tuple[Tensor, Tensor]:
    """Numbers for ids, counted as the rows bring them: captions in the order of their pictures need no sorting then."""
    ids: Tensor = torch.cat([row_ids, column_ids])
    known, index = torch.unique(ids, return_inverse=True)
    first = torch.full_like(known, len(ids)).scatter_reduce_(
        0, index, torch.arange(len(ids), device=ids.device), reduce="amin"
    )
    numbers = torch.empty_like(first)
    numbers[first.argsort()] = torch.arange(len(first), device=ids.device)
    labels = numbers[index]
    return labels[: len(row_ids)], labels[len(row_ids) :]


def _check_shapes(rows: Tensor, columns: Tensor, row_ids: Tensor, column_ids: Tensor, side: int | None) -> None:
    if rows.ndim != 2 or columns.ndim != 2 or rows.shape[1] != columns.shape[1]:
        raise ValueError(
            f"Expected queries [Q, d] and gallery [G, d], got {list(rows.shape)} and {list(columns.shape)}. "
            "Embed both with the same model."
        )
    if row_ids.shape != rows.shape[:1] or column_ids.shape != columns.shape[:1]:
        raise ValueError(
            f"Expected one id for each of {len(rows)} queries and {len(columns)} gallery rows, got "
            f"{list(row_ids.shape)} and {list(column_ids.shape)}. Gather ids along with embeddings."
        )
    require_integer_ids(row_ids, column_ids)
    if len(rows) == 0 or len(columns) == 0:
        raise ValueError(
            f"Expected at least one query and a gallery of at least one row, got {len(rows)} and {len(columns)}. Check "
            "that the test set has rows."
        )
    if side is not None and side < 1:
        raise ValueError(f"chunk_size must be at least 1, got {side}. Leave it out, or use 1024.")


def require_integer_ids(row_ids: Tensor, column_ids: Tensor) -> None:
    """Refuse ids that are no whole numbers.

    Raises:
        ValueError: another type.
    """
    if not (holds_integers(row_ids) and holds_integers(column_ids)):
        raise ValueError(
            f"Expected integer ids, of which equal ones match, got {row_ids.dtype} and {column_ids.dtype}. Number what "
            "belongs together, or convert the ids by `.long()`."
        )


def holds_integers(values: Tensor) -> bool:
    """Whether values are of an integer type; bool is none."""
    return not (values.is_floating_point() or values.is_complex() or values.dtype == torch.bool)


def row_norms(rows: Tensor) -> Tensor:
    """Lengths ``[n]``, 0 for rows that are not finite."""
    lengths: Tensor = rows.norm(dim=1)
    return lengths.nan_to_num(0.0, 0.0)
