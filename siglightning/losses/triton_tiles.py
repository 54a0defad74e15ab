"""What the fused kernels share: how blocks of a matrix product are cut, and the products with a finished tile.

A kernel forms one tile of logits between some images and some texts, and out of the accumulators of that matrix product
whatever the loss needs of them, so that no logit ever reaches memory. What does is the tile of derivatives by the
logits, in two bytes a pair where the inputs have two; the vendor's library multiplies it with texts and with images.

That tile is fp16, also for bf16 inputs: derivatives of both losses lie in [-2, 2], and times 2**14 all from 3.7e-9 on
keep fp16's eleven bits, where bf16 would keep eight at the same price. Its error is at most 2**-11 of such a
derivative, less than that of rounding a gradient to bf16; smaller ones are off by 1.8e-12 at most. What it is
multiplied with is fp16, too: of bf16 numbers those below 2**-14 lose bits, by 3e-8 at most. fp32 inputs have an fp32
tile.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.nn import functional
from triton.tools.tensor_descriptor import TensorDescriptor

from siglightning.losses.backends import rounds_to_tf32
from siglightning.losses.inputs import tiles

# A tile of 11,264 = 88 * 128 rows gives the products with it 264 blocks of 128 x 256 at d = 768: two whole rounds on
# the 132 multiprocessors of a Hopper GPU. In fp16 it takes 254 MB. Not measured yet: `benchmarks/gpu_loss.py --sweep`.
DEFAULT_SIDE = 11_264
TILE_SCALE = 2.0**14


@dataclass(frozen=True)
class Blocks:
    """How one program of a kernel cuts its part of a matrix product, and how it is compiled.

    Attributes:
        rows: images of a program's block.
        columns: texts of it.
        depth: of one step along the embedding.
        group: rows of blocks that are worked on together, so that their inputs are still in cache.
        warps: of 32 threads.
        stages: steps whose inputs are under way at once.
        registers: that a thread may have at most; ``None`` leaves them to the compiler.
    """

    rows: int
    columns: int
    depth: int
    group: int = 8
    warps: int = 8
    stages: int = 3
    registers: int | None = None

    def programs(self, num_rows: int, num_columns: int) -> int:
        """How many programs cover a tile."""
        return -(-num_rows // self.rows) * -(-num_columns // self.columns)


def default_blocks(embeds: Tensor, *, with_ids: bool) -> Blocks:
    """Blocks for the device that embeddings are on; see :func:`blocks_for`."""
    capability = torch.cuda.get_device_capability(embeds.device)[0] if embeds.is_cuda else 9
    return blocks_for(capability, embeds.element_size(), with_ids=with_ids, precision=precision_of(embeds.dtype))


def blocks_for(capability: int, element_size: int, *, with_ids: bool, precision: str = "tf32") -> Blocks:
    """Blocks whose accumulators and arithmetic fit into registers, as the compiler's reports say.

    They are in benchmarks/results/kernels. How fast other blocks are has not been measured yet.

    Args:
        capability: major number of the GPU's compute capability; 9 is Hopper.
        element_size: bytes of a number of the embeddings.
        with_ids: whether match ids are compared, which takes registers, too.
        precision: see :func:`precision_of`.
    """
    depth = 128 // element_size
    if precision == "ieee":
        return Blocks(32, 64, depth // 2, warps=4)
    if capability < 9:
        return Blocks(64, 64, depth // 2, warps=4)
    if capability == 9:
        return Blocks(128, 128 if with_ids else 256, depth)
    return Blocks(128, 64, depth, warps=4) if with_ids else Blocks(128, 128, depth)


def precision_of(dtype: torch.dtype) -> str:
    """How factors are multiplied: ``tf32`` on the matrix units, which two-byte ones pass unrounded, or ``ieee``.

    tf32 keeps eleven bits of a factor, as torch's own products do where it is switched on; ``ieee`` does without the
    matrix units.
    """
    return "tf32" if dtype != torch.float32 or rounds_to_tf32() else "ieee"


def balanced_side(num_rows: int, chunk_size: int | None) -> int:
    """Side of a tile in rows: as given, or such that the tiles of ``num_rows`` are about equal."""
    if chunk_size is not None:
        return chunk_size
    count = -(-num_rows // DEFAULT_SIDE)
    return -(-num_rows // count // 256) * 256


class Operand:
    """Images or texts, as a kernel reads them and as the products with a tile do.

    Args:
        embeds: ``[n, d]``.
        length: rows of a program's block.
        depth: of one step along the embedding.

    Attributes:
        described: for the kernel.
        width: d as the kernel reads it.
    """

    def __init__(self, embeds: Tensor, length: int, depth: int) -> None:
        self._embeds, read = embeds, _aligned(embeds)
        self.described = TensorDescriptor.from_tensor(read, [length, depth])
        self.width = read.shape[1]
        self._part: tuple[slice, Tensor] | None = None

    def factor(self, rows: slice) -> Tensor:
        """Some rows in the dtype of a tile; the newest ones asked for are kept."""
        if self._part is None or self._part[0] != rows:
            self._part = None  # first, lest two of them take memory
            self._part = rows, self._embeds[rows].to(tile_dtype(self._embeds.dtype))
        return self._part[1]


class FusedTiles:
    """Memory for one tile at a time, and what a kernel needs to know to fill it.

    Args:
        images: ``[n, d]``.
        side: of a tile in rows.
        blocks: how programs cut it.
        write: whether the kernel writes derivatives; otherwise there is no tile.
    """

    def __init__(self, images: Tensor, side: int, blocks: Blocks, write: bool) -> None:
        self.side, self.blocks, self.num_images = side, blocks, len(images)
        self.images = Operand(images, blocks.rows, blocks.depth)
        shape = [-(-side // length) * length for length in (blocks.rows, blocks.columns)]
        self._tile = images.new_empty(shape, dtype=tile_dtype(images.dtype)) if write else None
        # Without a tile nothing is stored; the kernel still wants an argument.
        part = [blocks.rows, blocks.columns // PARTS]
        self._described = (
            self.images.described if self._tile is None else TensorDescriptor.from_tensor(self._tile, part)
        )
        self._options = self._compiled_in(images)

    def operand(self, texts: Tensor) -> Operand:
        """One block of texts ``[m, d]``."""
        return Operand(texts, self.blocks.columns, self.blocks.depth)

    def places(self, num_texts: int) -> Iterator[tuple[slice, slice]]:
        """Rows and columns of every tile."""
        return tiles(self.num_images, num_texts, self.side)

    def launch(
        self, kernel: Any, texts: Operand, rows: slice, columns: slice, *arguments: Any, **constants: Any
    ) -> None:
        """Let ``kernel`` work on one tile.

        It is given images, texts and tile, ``arguments``, the tile's first row and column, its height and width, and
        at compile time ``constants`` and what its blocks are.
        """
        height, width = rows.stop - rows.start, columns.stop - columns.start
        kernel[(self.blocks.programs(height, width),)](
            self.images.described,
            texts.described,
            self._described,
            *arguments,
            rows.start,
            columns.start,
            height,
            width,
            **constants,
            **self._options,
        )

    def add_products(
        self, texts: Operand, rows: slice, columns: slice, image: Tensor | None, text: Tensor | None
    ) -> None:
        """Add the finished tile times texts to ``image [n, d]``, and its transpose times images to ``text [m, d]``."""
        if self._tile is None:
            return
        tile = self._tile[: rows.stop - rows.start, : columns.stop - columns.start]
        whole = slice(None)  # texts, which every stripe of images meets anew; images come stripe by stripe
        if image is not None:
            _add_product(image[rows], tile, texts.factor(whole)[columns])
        if text is not None:
            _add_product(text[columns], tile.T, self.images.factor(rows))

    def _compiled_in(self, images: Tensor) -> dict[str, Any]:
        is_half, blocks = images.dtype != torch.float32, self.blocks
        return {
            "WIDTH": self.images.width,
            "TILE_SCALE": TILE_SCALE if is_half else 1.0,
            "WRITE": self._tile is not None,
            # The interpreter multiplies bf16 wrongly; in fp32 it is given the same numbers.
            "UPCAST": images.dtype == torch.bfloat16 and not images.is_cuda,
            "PRECISION": precision_of(images.dtype),
            "ROWS": blocks.rows,
            "COLUMNS": blocks.columns,
            "DEPTH": blocks.depth,
            "GROUP": blocks.group,
            "num_warps": blocks.warps,
            "num_stages": blocks.stages,
            "enable_fp_fusion": True,
        } | ({} if blocks.registers is None else {"maxnreg": blocks.registers})


def pair_shift(rows: slice, columns: slice, is_own: bool) -> int:
    """Column less row of the pairs within a tile: 0, or so far off that there are none.

    Tiles have one side on both axes, so each holds its whole share of the diagonal or nothing of it.
    """
    return 0 if is_own and rows.start == columns.start else 2**30


def tile_dtype(dtype: torch.dtype) -> torch.dtype:
    """Of the derivatives by the logits: fp16 for two-byte embeddings, fp32 for fp32."""
    return torch.float32 if dtype == torch.float32 else torch.float16


def _aligned(embeds: Tensor) -> Tensor:
    """Rows that begin at multiples of 16 bytes, as the hardware copies them; zeros add nothing to a product."""
    missing = -embeds.shape[1] % (16 // embeds.element_size())
    padded = functional.pad(embeds, (0, missing)) if missing else embeds
    # A single row is contiguous to torch whatever its strides say; the hardware reads them.
    is_plain = padded.stride() == (padded.shape[1], 1) and padded.data_ptr() % 16 == 0
    return padded if is_plain else padded.new_empty(padded.shape).copy_(padded)


def _add_product(total: Tensor, tile: Tensor, factor: Tensor) -> None:
    """``total += tile @ factor`` in fp32, without the scale of the tile."""
    if tile.dtype == total.dtype:
        total.addmm_(tile, factor)
    elif total.is_cuda:
        torch.addmm(total, tile, factor, out_dtype=total.dtype, alpha=1 / TILE_SCALE, out=total)
    else:
        total.addmm_(tile.to(total.dtype), factor.to(total.dtype), alpha=1 / TILE_SCALE)


PARTS = 4  # of a block's columns, worked on one after the other: all at once do not fit into registers


@triton.jit
def block_place(num_rows, num_columns, ROWS: tl.constexpr, COLUMNS: tl.constexpr, GROUP: tl.constexpr):
    """First row and column of this program's block: down ``GROUP`` blocks, then one to the right, then on."""
    program, down, across = tl.program_id(0), tl.cdiv(num_rows, ROWS), tl.cdiv(num_columns, COLUMNS)
    first = program // (GROUP * across) * GROUP
    height, place = tl.minimum(down - first, GROUP), program % (GROUP * across)
    return (first + place % height) * ROWS, place // height * COLUMNS


@triton.jit
def accumulate_products(
    images,
    texts,
    row,
    column,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
    UPCAST: tl.constexpr,
):
    """Cosines fp32 ``[ROWS, COLUMNS]`` of the images from ``row`` on and the texts from ``column`` on."""
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for start in range(0, WIDTH, DEPTH):
        x, y = images.load([row, start]), texts.load([column, start])
        if UPCAST:
            x, y = x.to(tl.float32), y.to(tl.float32)
        total = tl.dot(x, y.T, total, input_precision=PRECISION)
    return total


@triton.jit
def halves(block):
    """A block's left and right half."""
    rows: tl.constexpr = block.shape[0]
    columns: tl.constexpr = block.shape[1]
    return block.reshape(rows, 2, columns // 2).permute(0, 2, 1).split()
