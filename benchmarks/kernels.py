"""What the compiler makes of the fused kernels for GPUs that are not here: registers, spills, instructions a pair.

Triton compiles without a GPU. A kernel whose accumulators spill to memory, or which does without the matrix units'
instructions, is slow whatever else it does; that much can be seen here. How fast it is cannot.

    python -m benchmarks.kernels                                     # A100, L40S, H100, B200
    python -m benchmarks.kernels --architectures 90 --dtypes bf16 --json
    python -m benchmarks.kernels --write                             # benchmarks/results/kernels/triton_VERSION.md
"""

import argparse
import json
import os
import re
import subprocess
import tempfile
from dataclasses import asdict, dataclass
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

# The interpreter's kernels cannot be compiled, and where they come from is decided at import.
os.environ.pop("TRITON_INTERPRET", None)

import torch
import triton
from tqdm import tqdm
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from siglightning.losses.triton_sigmoid import sigmoid_tile
from siglightning.losses.triton_softmax import log_sum_exp_tile, softmax_tile
from siglightning.losses.triton_tiles import PARTS, TILE_SCALE, Blocks, blocks_for, tile_dtype

ARCHITECTURES = {80: "A100", 89: "L40S", 90: "H100", 100: "B200"}
NAMES = {torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32"}
NO_IDS = {"image_ids": None, "text_ids": None}
KERNELS: dict[
    str, tuple[Any, bool, dict[str, Any]]
] = {  # kernel, whether it wants the room of ids, what is compiled in
    "sigmoid": (sigmoid_tile, False, {"MATCH": 0, "WRITE": True} | NO_IDS),
    "sigmoid, value alone": (sigmoid_tile, False, {"MATCH": 0, "WRITE": False} | NO_IDS),
    "sigmoid, matches are positives": (sigmoid_tile, True, {"MATCH": 1, "WRITE": True}),
    "sigmoid, matches are ignored": (sigmoid_tile, True, {"MATCH": 2, "WRITE": True}),
    "softmax, log-sum-exps": (log_sum_exp_tile, True, {"WRITE": True}),
    "softmax, derivatives": (softmax_tile, True, {"WRITE": True}),
}
TYPES = {
    "fp16": (torch.float16, "tf32"),
    "bf16": (torch.bfloat16, "tf32"),
    "tf32": (torch.float32, "tf32"),
    "fp32": (torch.float32, "ieee"),  # without the matrix units
}
MATRIX_UNITS = re.compile(r"HGMMA|HMMA|UTC\w*MMA")


@dataclass(frozen=True)
class Report:
    """Of one compiled kernel.

    Attributes:
        architecture: compute capability times ten.
        dtype: of the embeddings.
        kernel: of :data:`KERNELS`.
        blocks: rows, columns and depth.
        warps: of a program.
        registers: a thread, of 255.
        spilled: bytes a thread in local memory.
        shared: bytes of shared memory a program.
        matrix_units: instructions of the matrix units.
        per_pair: instructions after the last matrix product, a pair.
    """

    architecture: int
    dtype: str
    kernel: str
    blocks: tuple[int, int, int]
    warps: int
    registers: int
    spilled: int
    shared: int
    matrix_units: int
    per_pair: float


def compiled(architecture: int, name: str, kernel: str, blocks: Blocks | None = None) -> Report:
    """Compile a kernel of :data:`KERNELS` for embeddings of 768 dimensions in a type of :data:`TYPES`."""
    function, with_ids, constants = KERNELS[kernel]
    dtype, precision = TYPES[name]
    blocks = blocks or blocks_for(architecture // 10, dtype.itemsize, with_ids=with_ids, precision=precision)
    constants = constants | {
        "WIDTH": 768,
        "TILE_SCALE": TILE_SCALE if dtype != torch.float32 else 1.0,
        "UPCAST": False,
        "PRECISION": precision,
        "ROWS": blocks.rows,
        "COLUMNS": blocks.columns,
        "DEPTH": blocks.depth,
        "GROUP": blocks.group,
    }
    signature = {
        argument: "constexpr" if argument in constants else _type_of(argument, dtype, blocks, constants["WRITE"])
        for argument in function.arg_names
    }
    places = {argument: (place,) for place, argument in enumerate(function.arg_names)}
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={places[argument]: value for argument, value in constants.items()},
        attrs={
            places[argument]: [["tt.divisibility", 16]] for argument, kind in signature.items() if kind.startswith("*")
        },
    )
    options = {"num_warps": blocks.warps, "num_stages": blocks.stages, "enable_fp_fusion": True}
    made = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    usage, code = _examined(made.asm["cubin"])
    matrix_units = [at for at, word in enumerate(code) if MATRIX_UNITS.match(word)]
    pairs = blocks.rows * blocks.columns / (32 * blocks.warps)
    return Report(
        architecture,
        name,
        kernel,
        (blocks.rows, blocks.columns, blocks.depth),
        blocks.warps,
        *usage,
        made.metadata.shared,
        len(matrix_units),
        round((len(code) - max(matrix_units, default=0)) / pairs, 1),
    )


def _type_of(name: str, dtype: torch.dtype, blocks: Blocks, write: bool) -> str:
    """Of a kernel's argument, in Triton's words."""
    parts = {
        "images": [blocks.rows, blocks.depth],
        "texts": [blocks.columns, blocks.depth],
        "tile": [blocks.rows, blocks.columns // PARTS if write else blocks.depth],
    }
    if name in parts:
        kind = tile_dtype(dtype) if name == "tile" and write else dtype
        return f"tensordesc<{NAMES[kind]}{parts[name]}>"
    if name in ("row", "column", "num_rows", "num_columns", "shift", "stride"):
        return "i32"
    return {"image_ids": "*i64", "text_ids": "*i64", "sums": "*fp64"}.get(name, "*fp32")


def _examined(cubin: bytes) -> tuple[tuple[int, int], list[str]]:
    """Registers and bytes of stack a thread, and the names of all instructions in their order."""
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        usage, code = (
            subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout
            for option in ("-res-usage", "-sass")
        )
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    assert found is not None
    words = re.findall(r"/\*[0-9a-f]{4,5}\*/\s+(?:@!?U?P\d+\s+)?([A-Z][\w.]*)", code)
    return (int(found[1]), int(found[2])), words


def page(reports: list[Report]) -> str:
    """The page in benchmarks/results/kernels."""
    head = [
        "GPU",
        "embeddings",
        "kernel",
        "block",
        "warps",
        "registers",
        "spilled",
        "shared KiB",
        "instructions a pair",
    ]
    rows = [
        (
            ARCHITECTURES.get(r.architecture, f"sm_{r.architecture}"),
            r.dtype,
            r.kernel,
            " x ".join(map(str, r.blocks)),
            r.warps,
            r.registers,
            r.spilled,
            f"{r.shared / 1024:.0f}",
            r.per_pair,
        )
        for r in reports
    ]
    table = [" | ".join(map(str, row)) for row in (head, ["---"] * len(head), *rows)]
    return "\n".join(
        [
            "# What the compiler makes of the fused kernels",
            "",
            f"`python -m benchmarks.kernels --write`, {date.today()}, Triton {triton.__version__}, torch "
            f"{torch.__version__}, compiled without a GPU for embeddings of 768 dimensions. Nothing here is a time.",
            "",
            "Registers are those of a thread, of 255; spilled are bytes of a thread that went to memory instead; the",
            "last column counts the instructions of a thread after its last matrix product, rarely taken branches",
            "included, over the pairs that it works on. tf32 and fp32 are fp32 embeddings, the latter without the",
            "matrix units (torch's default for products of fp32), where all instructions are counted. The A100 and the",
            "L40S read by plain loads, a step at a time: the automatic choice is eager there.",
            "",
            *(f"| {line} |" for line in table),
            "",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--architectures", type=int, nargs="+", default=list(ARCHITECTURES))
    parser.add_argument("--dtypes", nargs="+", default=list(TYPES), choices=list(TYPES))
    parser.add_argument("--json", action="store_true", help="one report a line, instead of the page")
    parser.add_argument("--write", action="store_true", help="write the page to benchmarks/results/kernels")
    options = parser.parse_args()
    cases = list(product(options.architectures, options.dtypes, KERNELS))
    reports = [compiled(*case) for case in tqdm(cases, disable=None)]
    text = "\n".join(json.dumps(asdict(report)) for report in reports) if options.json else page(reports)
    if options.write:
        version = ".".join(triton.__version__.split(".")[:2])
        (Path(__file__).parent / "results" / "kernels" / f"triton_{version}.md").write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
