"""Machine code of the Triton kernels, compiled ahead of time, and its statistics. Needs triton, but no GPU.

    python bench/triton_sass.py                     reports every kernel on sm_80, sm_90 and sm_100
    python bench/triton_sass.py --check             fails if a kernel exceeds its budget, bench/triton_budget.json
    python bench/triton_sass.py --write             tightens the budget to the results
    python bench/triton_sass.py --arch 90 --only "forward bf16*"
    python bench/triton_sass.py --bounds            bounds for an H200, computed from the code, not measured

Columns:
    registers           per thread
    programs            that fit on a multiprocessor by their registers
    spills              local loads and stores; and those in the main loop
    shared              bytes of shared memory
    tensor              tensor-core instructions in the main loop
    from registers      of these, with the first operand in registers
    waits               for tensor cores in the main loop (sm_90)
    other               other instructions in the main loop
    per weight          of products: other x threads / weights of a step
    alu, fma, wide      instructions of the main loop by the pipe that executes them; a scheduler issues to the first
                        two every second cycle, to the third every fourth
    cycles              of the busiest of issue and these pipes, per warp and step
    outside             of grad_scores: cycles outside the main loop, mostly those of the epilogue, times threads, over
                        the weights of a program
"""

import argparse
import json
import os
import re
import sys
import tempfile
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import NamedTuple

os.environ.pop("TRITON_INTERPRET", None)

import bounds
import sass
import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from slt_kernels.backends.triton import forward, grad_input, grad_scores
from slt_kernels.backends.triton.embedding import (
    embedding_forward_kernel,
    embedding_grad_scores_kernel,
    sum_pieces_kernel,
)
from slt_kernels.backends.triton.expand import expand_kernel
from slt_kernels.backends.triton.fixed_point import to_digits_kernel
from slt_kernels.backends.triton.images import Image
from slt_kernels.backends.triton.launch import Machine, count_kernel, registers
from slt_kernels.backends.triton.materialize import materialize_kernel
from slt_kernels.backends.triton.pack import pack_kernel
from slt_kernels.backends.triton.select import descend_kernel, histogram_kernel
from slt_kernels.backends.triton.tiles import REGISTERS, Tile, needs_fences
from slt_kernels.backends.triton.words import KernelSource

SIZE = 8192  # rows and fan of the layers
_BF16, _FP32 = "*bf16", "*fp32"
BUDGET = Path(__file__).with_name("triton_budget.json")
MACHINES = {80: Machine(8, 108), 90: Machine(9, 132), 100: Machine(10, 148)}  # A100, H100, B200
_COLUMNS = (
    "registers",
    "programs",
    "spills",
    "spills_in_loop",
    "shared",
    "tensor",
    "from_registers",
    "waits",
    "other",
    "per_weight",
    *bounds.PIPES,
    "cycles",
    "outside",
)
VERSION = ".".join(triton.__version__.split(".")[:2])  # each compiler version has its own budget

_ONES = (
    "stride_h",
    "stride_w",
    "padding_h",
    "padding_w",
    "dilation_h",
    "dilation_w",
)  # fields of `Image` that are 1, as which Triton specializes them
_SOURCE = KernelSource("i32", "i32", *["i64"] * (len(KernelSource._fields) - 2))
_POINTERS = {
    "mask": "*i32",
    "row_starts": "*i64",
    "call_starts": "*i32",
    "table": "*i8",
    "scale": "*fp32",
    "bias": "*fp32",
    "unit": "*fp64",
    "arrived": "*i32",
    "scores": "*fp32",
    "threshold": "*fp32",
    "free_counts": "*i32",
    "locked_counts": "*i32",
    "kept": "*i64",
    "counts": "*i64",
    "state": "*i64",
    "largest": "*fp32",
    "digits": "*i8",
    "grads": "*fp32",
    "index": "*i64",
    "order": "*i64",
    "ends": "*i64",
    "piece": "*i1",
    "places": "*i32",
}
_LONG = ("plane", "count", "rank", "length", "padded")  # int64; all other numbers are int32
_NOT_SPECIALIZED = (
    "columns",
    "count",
    "rank",
    "length",
    "padded",
    "parts",
    "steps",
    "channel_blocks",
    "source",
    "image",
    "scale",
    "bias",
    "threshold",
    "sizes",
)


class Case(NamedTuple):
    """A kernel as it is launched for large layers; its numbers are multiples of 16 except `odd`."""

    kernel: triton.JITFunction
    constants: dict[str, object]
    pointers: dict[str, str | tuple[str, ...]]  # types that depend on the case
    options: dict[str, int]
    weights: int = 0  # per step of the main loop; 0 without one
    odd: tuple[str, ...] = ()  # numbers that are not multiples of 16
    strided: bool = False


MakeCase = Callable[[Machine], Case]  # the case as it is launched on a machine


def _forward(
    dtype: str,
    d: int,
    columns: int,
    weight: int = 0,
    rows: int = SIZE,
    scattered: bool = False,
    odd: tuple[str, ...] = (),
    **flags: bool,
) -> MakeCase:
    flags = {"CONV": False, "ORDERED": True, "ONE_TAP": True, "FULL": True, "COMPACT": False, "BIAS": True} | flags
    flags = {"SPLIT": False, **flags}

    def make(machine: Machine) -> Case:
        plain = flags["FULL"] and not flags["CONV"]
        shape = (columns, rows, 1, d, weight, flags["COMPACT"], plain, flags["CONV"], scattered)
        pointers = {"x": "*i8" if d else dtype, "out": dtype, "partial_sums": "*i64" if d else _FP32}
        tile = forward.tiles(*shape, machine)[0]
        flags["FREEZE_CALLS"] = 2 if flags["COMPACT"] else 0
        constants = {"WEIGHT": weight, "D": d, "PIECES": tile.pieces, **flags}
        constants["FENCE"] = needs_fences(machine, tile.BN)
        return _product(forward.forward_kernel, tile, constants, pointers, 128 * tile.BN, odd)

    return make


def _grad_input(
    dtype: str,
    d: int,
    columns: int,
    weight: int = 0,
    rows: int = SIZE,
    bc: int = 128,
    odd: tuple[str, ...] = (),
    strided: bool = False,
    **flags: bool,
) -> MakeCase:
    flags = {"CONV": False, "UNALIGNED": False, "FULL": True, "COMPACT": False, "SPLIT": False} | flags

    def make(machine: Machine) -> Case:
        plain = flags["FULL"] and not flags["CONV"]
        shape = (columns, rows, SIZE // bc, d, weight, flags["COMPACT"], plain, flags["CONV"])
        pointers = {"dy": "*i8" if d else dtype, "out": dtype, "partial_sums": "*i64" if d else _FP32}
        tile = grad_input.tiles(*shape, machine)[0]
        flags["FREEZE_CALLS"] = 2 if flags["COMPACT"] else 0
        fence = needs_fences(machine, bc)
        constants = {"WEIGHT": weight, "D": d, "BC": bc, "PIECES": tile.pieces, "FENCE": fence, **flags}
        return _product(grad_input.grad_input_kernel, tile, constants, pointers, tile.BN * bc, odd, strided)

    return make


def _grad_scores(
    dtype: str,
    conv: bool = False,
    scattered: bool = False,
    weight: int = 0,
    rows: int = SIZE,
    odd: tuple[str, ...] = (),
    freeze_calls: int = 2,
    precision: str = "tf32x3",
) -> MakeCase:
    def make(machine: Machine) -> Case:
        values = torch.float32 if dtype == _FP32 else torch.bfloat16
        tile = grad_scores.tiles(rows, values, precision, weight, scattered, machine)[0]
        constants = {"WEIGHT": weight, "CONV": conv, "ONE_TAP": not scattered, "SPLIT": False}
        constants |= {"PRECISION": precision, "FREEZE_CALLS": freeze_calls, "LONG": False}
        constants["FENCE"] = needs_fences(machine, tile.BN) and dtype != _FP32
        constants["TRANSPOSED"] = grad_scores.transposed(values, SIZE, tile, machine)
        pointers = {"dy": dtype, "x": dtype, "out": "*fp32"}
        return _product(grad_scores.grad_scores_kernel, tile, constants, pointers, 0, odd)

    return make


def _product(
    kernel: triton.JITFunction,
    tile: Tile,
    constants: dict[str, object],
    pointers: dict[str, str],
    weights: int,
    odd: tuple[str, ...],
    strided: bool = False,
) -> Case:
    options = tile.meta()
    sizes = {name: options.pop(name) for name in ("BN", "BM")}
    return Case(kernel, constants | sizes, pointers, options, weights, odd, strided)


def _small(
    kernel: triton.JITFunction,
    pointers: dict[str, str | tuple[str, ...]],
    warps: int = 4,
    limit: dict[str, int] | None = None,
    **constants: object,
) -> MakeCase:
    return lambda machine: Case(kernel, constants, pointers, {"num_warps": warps, **(limit or {})})


def _tensors(pointer: str, count: int) -> dict[str, tuple[str, ...]]:
    """The scores of some layers, and their sizes."""
    return {"scores": (pointer,) * count, "sizes": ("i32",) * count}


def _embedding_grad_scores(split: bool) -> MakeCase:
    pointers = {"dy": _FP32, "out": _FP32, "sums": _FP32}
    return _small(embedding_grad_scores_kernel, pointers, WEIGHT=0, FREEZE_CALLS=2, LONG=False, SPLIT=split, N=16, L=64)


def _add_parts(n: int) -> MakeCase:
    flags = {"WEIGHT": 0, "FREEZE_CALLS": 2, "LONG": False}
    limit = grad_scores.sum_registers(n)
    return _small(grad_scores.sum_grads_kernel, {"out": _FP32}, limit=limit, **flags, N=n, TOGETHER=max(1, 32 // n))


_FEW_CHANNELS = {"ONE_TAP": False, "FULL": False}
_ODD_ROWS = ("rows", "group_rows")
_ODD_CHANNELS = ("pitch", "channels", "fan", "group_channels")
CASES: dict[str, MakeCase] = {
    "forward bf16": _forward(_BF16, 0, 4096),
    "forward bf16, 64 columns": _forward(_BF16, 0, 256),
    "forward bf16, in parts": _forward(_BF16, 0, 64, SPLIT=True),
    "forward bf16, 257 rows": _forward(_BF16, 0, 4096, odd=_ODD_ROWS),
    "forward bf16, 131 x 127": _forward(_BF16, 0, 4096, odd=(*_ODD_ROWS, "group_channels"), **_FEW_CHANNELS),
    "forward bf16, batch 1 to 16": _forward(_BF16, 0, 16, SPLIT=True),
    "forward bf16, compact": _forward(_BF16, 0, 4096, COMPACT=True),
    "forward bf16, convolution": _forward(_BF16, 0, 4096, CONV=True),
    "forward bf16, convolution, 64 channels": _forward(_BF16, 0, 4096, CONV=True, ONE_TAP=False),
    "forward bf16, convolution, 3 channels": _forward(
        _BF16, 0, 4096, scattered=True, odd=_ODD_CHANNELS, CONV=True, **_FEW_CHANNELS
    ),
    "forward fp32, 3 digits": _forward(_FP32, 3, 4096),
    "forward fp32, 3 digits, batch 1 to 16": _forward(_FP32, 3, 16, SPLIT=True),
    "forward fp32, 2 digits": _forward(_FP32, 2, 4096),
    "forward fp32, 3 digits, convolution": _forward(_FP32, 3, 4096, CONV=True),
    "forward fp32, 3 digits, convolution, 3 channels": _forward(
        _FP32, 3, 4096, scattered=True, odd=_ODD_CHANNELS, CONV=True, ORDERED=False, **_FEW_CHANNELS
    ),
    "forward fp32, 3 digits, uniform": _forward(_FP32, 3, 4096, weight=1),
    "forward fp32, 3 digits, normal": _forward(_FP32, 3, 4096, weight=2),
    "forward bf16, 2 digits, normal": _forward(_BF16, 2, 4096, weight=2),
    "grad_input bf16, batch 1 to 16": _grad_input(_BF16, 0, 16, SPLIT=True),
    "grad_input fp32, 3 digits, batch 1 to 16": _grad_input(_FP32, 3, 16, SPLIT=True),
    "grad_input bf16": _grad_input(_BF16, 0, 4096),
    "grad_input bf16, 64 columns": _grad_input(_BF16, 0, 256),
    "grad_input bf16, in parts": _grad_input(_BF16, 0, 64, SPLIT=True),
    "grad_input bf16, 257 rows": _grad_input(_BF16, 0, 4096, odd=_ODD_ROWS),
    "grad_input bf16, 131 x 127": _grad_input(
        _BF16, 0, 4096, odd=("group_rows", "channels", "group_channels"), FULL=False
    ),
    "grad_input bf16, compact": _grad_input(_BF16, 0, 4096, COMPACT=True),
    "grad_input bf16, convolution": _grad_input(_BF16, 0, 4096, CONV=True),
    "grad_input bf16, convolution, strides, 65 rows per group": _grad_input(
        _BF16, 0, 4096, odd=_ODD_ROWS, strided=True, CONV=True
    ),
    "grad_input bf16, convolution, 64 channels": _grad_input(_BF16, 0, 4096, bc=64, CONV=True),
    "grad_input bf16, convolution, 48 channels": _grad_input(_BF16, 0, 4096, bc=32, CONV=True, UNALIGNED=True),
    "grad_input bf16, convolution, 48 channels, normal": _grad_input(
        _BF16, 2, 4096, weight=2, bc=32, CONV=True, UNALIGNED=True
    ),
    "grad_input fp32, 3 digits": _grad_input(_FP32, 3, 4096),
    "grad_input fp32, 3 digits, in parts": _grad_input(_FP32, 3, 64, SPLIT=True),
    "grad_input fp32, 3 digits, 257 rows": _grad_input(_FP32, 3, 4096, odd=_ODD_ROWS),
    "grad_input fp32, 3 digits, normal": _grad_input(_FP32, 3, 4096, weight=2),
    "grad_scores bf16": _grad_scores(_BF16),
    "grad_scores bf16, nothing frozen": _grad_scores(_BF16, freeze_calls=0),
    "grad_scores bf16, convolution": _grad_scores(_BF16, conv=True),
    "grad_scores bf16, convolution, 3 channels": _grad_scores(_BF16, conv=True, scattered=True, odd=_ODD_CHANNELS),
    "grad_scores bf16, convolution, 3 channels to 6, normal": _grad_scores(
        _BF16, conv=True, scattered=True, weight=2, rows=6, odd=(*_ODD_CHANNELS, "all_rows", "group_rows")
    ),
    "grad_scores fp32": _grad_scores(_FP32),
    "grad_scores fp32, high": _grad_scores(_FP32, precision="tf32"),
    "grad_scores fp32, convolution": _grad_scores(_FP32, conv=True),
    "add parts of grad_scores": _add_parts(16),
    "add parts of grad_scores, 64 rows": _add_parts(64),
    "to digits": _small(to_digits_kernel, {"x": _FP32}, 16, QUAD_ORDER=True, D=3, ALONE=True, BLOCK=8192),
    "materialize": _small(materialize_kernel, {"out": "*i8"}, WEIGHT=0, N=32),
    "materialize, normal": _small(materialize_kernel, {"out": "*i8"}, WEIGHT=2, N=32),
    "embedding": _small(embedding_forward_kernel, {"y": _FP32}, WEIGHT=0, COMPACT=False, FREEZE_CALLS=0, N=32),
    "embedding, compact, normal": _small(
        embedding_forward_kernel, {"y": _FP32}, WEIGHT=2, COMPACT=True, FREEZE_CALLS=2, N=32
    ),
    "embedding, grad_scores": _embedding_grad_scores(split=False),
    "embedding, grad_scores, long runs": _embedding_grad_scores(split=True),
    "embedding, sums of pieces": _small(sum_pieces_kernel, {"dy": _FP32, "sums": _FP32}, N=16, L=64),
    "expand": _small(expand_kernel, {"out": "*i32"}, FREEZE_CALLS=2, N=64),
    "expand, sixteenths": _small(expand_kernel, {"out": "*i32"}, FREEZE_CALLS=1, N=64),
    "pack": _small(pack_kernel, {}, W=128),
    "count free weights": _small(count_kernel, {}, limit=registers(64), FREEZE_CALLS=2, N=128),
    "select, count": _small(histogram_kernel, _tensors(_FP32, 54), SHIFT=23, BITS=8, BLOCK=4096),
    "select, count, float64": _small(histogram_kernel, _tensors("*fp64", 54), 8, SHIFT=55, BITS=8, BLOCK=4096),
    "select, descend": _small(descend_kernel, {}, BITS=8),
}


def compile_case(case: Case, architecture: int | GPUTarget) -> triton.compiler.CompiledKernel:
    """Compiles for a compute capability or another target."""
    target = architecture if isinstance(architecture, GPUTarget) else GPUTarget("cuda", architecture, 32)
    strided = case.strided or case.kernel is not grad_input.grad_input_kernel  # see `Image.with_any_stride`
    ones = [name for name in _ONES if not (strided and name.startswith("stride"))]
    names = case.kernel.arg_names
    constants, options = case.constants, case.options
    types = {}
    for name in names:
        if name in constants:
            types[name] = "constexpr"
        elif name == "source":
            types[name] = _SOURCE
        elif name == "image":
            types[name] = Image(*["i32"] * len(Image._fields))._replace(**dict.fromkeys(ones, "constexpr"))
        else:
            types[name] = case.pointers.get(name) or _POINTERS.get(name) or ("i64" if name in _LONG else "i32")
    aligned = [name for name in names if name not in constants and name not in (*_NOT_SPECIALIZED, *case.odd)]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    if "image" in names:
        constants = constants | {(names.index("image"), Image._fields.index(field)): 1 for field in ones}
    source = ASTSource(fn=case.kernel, signature=types, constexprs=constants, attrs=attributes)
    options = {**options, "enable_fp_fusion": False}
    return triton.compile(source, target=target, options=options)


def launched(name: str, architecture: int) -> Case:
    """A case as it is launched on that compute capability."""
    return CASES[name](MACHINES[architecture])


def machine_code(case: Case, architecture: int) -> tuple[triton.compiler.CompiledKernel, str, str]:
    """The compiled kernel, the registers that it uses, and its code."""
    compiled = compile_case(case, architecture)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = sass.run("cuobjdump", "-res-usage", file.name)
        return compiled, usage, sass.run("nvdisasm", "-c", file.name)


def measure(name: str, architecture: int) -> dict[str, object]:
    case = launched(name, architecture)
    compiled, usage, code = machine_code(case, architecture)
    instructions, loop = _main_loop(code)
    tensor = [i for i in loop if sass.is_tensor(i)]
    registers = int(re.search(r"REG:(\d+)", usage).group(1))
    warps = compiled.metadata.num_warps
    result = {
        "registers": registers,
        "spills": sum(sass.is_spill(i) for i in instructions),
        "shared": compiled.metadata.shared,
        "programs": min(REGISTERS // (32 * warps * 8 * -(-registers // 8)), 64 // warps),
    }
    if loop:
        result["spills_in_loop"] = sum(sass.is_spill(i) for i in loop)
        result["waits"] = sum("WARPGROUP.DEPBAR" in i for i in loop)
        everything = sass.by_pipe(instructions)
        outside = {pipe: number - sass.by_pipe(loop).get(pipe, 0) for pipe, number in everything.items()}
        result["outside_cycles"] = bounds.cycles(outside)
        result["tensor"] = len(tensor)
        result["from_registers"] = sum(bool(re.search(r"GMMA\S* R\d+, R\d+,", i)) for i in tensor)
        result["other"] = len(loop) - len(tensor)
        pipes = sass.by_pipe(loop)
        result |= {pipe: pipes.get(pipe, 0) for pipe in bounds.PIPES}
        result["cycles"] = bounds.cycles(pipes)
    if case.kernel in (grad_scores.grad_scores_kernel, grad_scores.sum_grads_kernel):
        rows = case.constants.get("BN") or case.constants["N"]
        outside = result.get("outside_cycles") or bounds.cycles(
            sass.by_pipe(instructions)
        )  # few in the loop over parts
        result["outside"] = round(outside * 32 * warps / (128 * rows), 2)
    if loop and case.weights:
        threads = 32 * warps
        result["per_weight"] = round((len(loop) - len(tensor)) * threads / case.weights, 2)
    return result


def _main_loop(code: str) -> tuple[list[str], list[str]]:
    """All instructions of a kernel, and those of its shortest loop that has tensor-core instructions."""
    instructions, loops = sass.instructions_and_loops(code)
    return instructions, min((loop for loop in loops if any(map(sass.is_tensor, loop))), key=len, default=[])


LIMITS = {  # the keys of a budget, and which of two results is the better
    "spills": min,
    "spills_in_loop": min,
    "programs": max,
    "from_registers": max,
    "waits": min,
    "per_weight": min,
    **dict.fromkeys(bounds.PIPES, min),
    "cycles": min,
    "outside": min,
}


def over_budget(name: str, result: dict, budget: dict) -> list[str]:
    """The results that exceed the budget. Registers and shared memory have none; spills and instructions do."""
    limits = budget.get(name)
    if limits is None:
        return ["is not in the budget"]
    return [
        f"{key} {result.get(key, 0)}, budget {limits[key]}"
        for key, better in LIMITS.items()
        if key in limits and better(result.get(key, 0), limits[key]) != result.get(key, 0)
    ]


def tightened(limits: dict, result: dict) -> dict:
    """A kernel's budget, tightened to the result. It never loosens: delete an entry to measure it anew.

    An entry that has no limit per weight gets none: its instructions are limited by the pipes that execute them.
    """
    keys = [key for key in LIMITS if key in result and (key != "per_weight" or key in limits or not limits)]
    return {key: LIMITS[key](result[key], limits.get(key, result[key])) for key in keys}


FLOPS = {0: bounds.FLOPS["bf16"], 3: bounds.FLOPS["int8"]}  # of D
AIMS = {  # for an 8192 x 8192 layer: case, batch, and the wanted speed relative to the dense product
    "forward, batch 1 to 16": ("forward bf16, batch 1 to 16", 16, 4),
    "forward, batch 256": ("forward bf16, 64 columns", 256, 0.75),
    "forward, batch 4096": ("forward bf16", 4096, 0.75),
    "forward, batch 1024, float32 highest": ("forward fp32, 3 digits", 1024, 4),
    "grad_input, batch 4096": ("grad_input bf16", 4096, 0.7),
    "grad_scores, batch 4096": ("grad_scores bf16", 4096, 0.9),
}


def print_bounds() -> None:
    """Prints for each aim the times of instructions, bytes and tensor cores, and the speed relative to the dense
    product's bound: with full overlap of the three, and with none."""
    print(f"H200, computed from sm_90 code of Triton {triton.__version__}: not measured\n")
    print("| case | issue us | bytes us | tensor us | dense us | overlapped | one by one | aim |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    for aim, (name, batch, target) in AIMS.items():
        case, result = launched(name, 90), measure(name, 90)
        threads = 32 * case.options["num_warps"]
        weights, values = SIZE**2, 2 * batch * SIZE
        blocks = -(-batch // case.constants["BM"])
        scored = case.kernel is grad_scores.grad_scores_kernel
        tiles = weights / 128**2 if scored else SIZE / 128 * blocks
        programs = max(tiles, result["programs"] * 132)  # sums in parts
        steps = weights / (case.weights or 128 * 128) * blocks
        d = case.constants.get("D", 0)
        issue = (steps * result["cycles"] + programs * result["outside_cycles"]) * threads / bounds.LANES
        moved = 8 * weights if scored else weights / 8  # scores and their gradient, or masks
        size = 4 if d else 2
        times = (issue, (moved + size * values) / bounds.BYTES, 2 * weights * batch * (d or 1) / FLOPS[d])
        rate = bounds.FLOPS["float32" if d else "bf16"]
        dense = max(size * (weights + values) / bounds.BYTES, 2 * weights * batch / rate)
        numbers = [f"{1e6 * t:.1f}" for t in (*times, dense)] + [f"{dense / t:.2f}x" for t in (max(times), sum(times))]
        print(f"| {aim} | {' | '.join(numbers)} | {target}x |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=MACHINES, choices=MACHINES)
    parser.add_argument("--only", nargs="+", default=["*"], help="names of cases, or patterns of the shell's kind")
    parser.add_argument("--bounds", action="store_true")
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--out", type=Path, help="write the whole report as JSON")
    arguments = parser.parse_args()
    if arguments.bounds:
        print_bounds()
        return
    budgets = json.loads(BUDGET.read_text()) if BUDGET.exists() else {}
    if arguments.check and VERSION not in budgets:
        print(f"no budget for Triton {VERSION}: nothing is checked")
        arguments.check = False
    failures, report = [], {"triton": triton.__version__, "kernels": {}}
    for architecture in arguments.arch:
        print(f"\nsm_{architecture}, Triton {triton.__version__}")
        print(f"| {' | '.join(('kernel', *_COLUMNS))} |".replace("_", " "))
        print("| --- " * (1 + len(_COLUMNS)) + "|")
        budget = budgets.setdefault(VERSION, {}).setdefault(f"sm_{architecture}", {})
        for name in CASES:
            if not any(fnmatch(name, pattern) for pattern in arguments.only):
                continue
            result = measure(name, architecture)
            report["kernels"].setdefault(name, {})[f"sm_{architecture}"] = result
            print(f"| {name} | {' | '.join(str(result.get(key, '')) for key in _COLUMNS)} |", flush=True)
            if arguments.check:
                failures += [f"sm_{architecture}, {name}: {text}" for text in over_budget(name, result, budget)]
            if arguments.write:
                budget[name] = tightened(budget.get(name, {}), result)
    if arguments.out:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")
    if arguments.write:
        BUDGET.write_text(json.dumps(budgets, indent=1) + "\n")
    if failures:
        sys.exit("over budget:\n" + "\n".join(failures))


if __name__ == "__main__":
    main()
