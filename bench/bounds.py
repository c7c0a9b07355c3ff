"""Bounds of a product on an H200 SXM, computed from the machine code of its main loop: not measured.

A product takes at least the time of its bytes from memory, of its tensor products, and of the instructions of the
busiest pipe. What comes before and after the main loop, launches and waits take longer.
"""

import re
from collections.abc import Iterable
from typing import NamedTuple

import sass

PROCESSORS, SCHEDULERS, CLOCK = 132, 4, 1.755e9
LANES = 32 * PROCESSORS * SCHEDULERS * CLOCK
BYTES = 4.3e12  # per second
FLOPS = {"bf16": 790e12, "int8": 1580e12, "tf32": 395e12, "bit": 12500e12, "float32": 60e12}
PIPES = {"alu": 2, "fma": 2, "wide": 4}  # cycles per instruction
CONSTANTS = (  # what, value, where it is from
    ("multiprocessors, schedulers of each", f"{PROCESSORS}, {SCHEDULERS}", "NVIDIA's description of the chip"),
    ("clock", "1.755 GHz", "under load; the most is 1.98 GHz"),
    ("memory", "4.3 TB/s", "what copies reach; 4.8 by the data sheet"),
    ("bfloat16, float16", "790 TFLOP/s", "what large dense products reach; 989 by the data sheet"),
    ("int8", "1580 TOP/s", "assumed: twice bfloat16, as in the data sheet"),
    ("TF32", "395 TFLOP/s", "assumed: half of bfloat16, as in the data sheet"),
    ("bits", "12500 TOP/s", "assumed: eight times int8, as on an A100"),
    ("float32, without tensor cores", "60 TFLOP/s", "assumed; 67 by the data sheet"),
    ("alu and fma", "an instruction every 2nd cycle", "64 lanes per multiprocessor: the CUDA programming guide"),
    ("wide products", "an instruction every 4th cycle", "measured by others on an RTX 4090, on Hopper unknown"),
)


class Loop(NamedTuple):
    """A turn of a warp's main loop.

    Attributes:
        pipes: instructions by the pipe that executes them.
        products: multiplications and additions of each kind of tensor product, of this warp's share.
    """

    pipes: dict[str, int]
    products: dict[str, int]


class Bound(NamedTuple):
    """What bounds a product.

    Attributes:
        pipe: the busiest; "issue" where all instructions together take longest.
        cycles: that it takes, of a scheduler.
        tensor: seconds of tensor products.
        ratio: the time of the dense product over the bound.
    """

    pipe: str
    cycles: float
    tensor: float
    ratio: float


def loop_of(instructions: list[str]) -> Loop:
    """The counts of a turn."""
    products: dict[str, int] = {}
    for instruction in instructions:
        if shape := _product(instruction):
            products[shape[0]] = products.get(shape[0], 0) + shape[1]
    return Loop(sass.by_pipe(instructions), products)


def _product(instruction: str) -> tuple[str, int] | None:
    """The kind of a tensor product, and what a warp multiplies in it."""
    found = re.match(r"([HIB])(G?)MMA\.(\d+x\d+x\d+|\d+)(\S*)", instruction)
    if not found:
        return None
    letter, warpgroup, shape, rest = found.groups()
    kind = "tf32" if "TF32" in rest else {"H": "bf16", "I": "int8", "B": "bit"}[letter]
    if warpgroup:
        rows, columns, k = map(int, shape.split("x"))
        return kind, rows * columns * k // 4
    return kind, {"16816": 16 * 8 * 16, "1688": 16 * 8 * 8, "16832": 16 * 8 * 32, "168256": 16 * 8 * 256}[shape]


def busiest(pipes: dict[str, float]) -> tuple[str, float]:
    """The pipe that takes longest for a scheduler's instructions, and its cycles; "issue" is a cycle for each."""
    times = {pipe: each * pipes.get(pipe, 0) for pipe, each in PIPES.items()} | {"issue": sum(pipes.values())}
    pipe = max(times, key=lambda name: times[name])
    return pipe, times[pipe]


def cycles(pipes: dict[str, int]) -> int:
    """The fewest cycles in which a scheduler issues a warp's instructions."""
    return busiest(pipes)[1]


def bound(work: Iterable[tuple[Loop, float]], moved: float, dense: float) -> Bound:
    """The bound of a product.

    Args:
        work: loops, and how many turns all warps together make.
        moved: bytes from and to memory.
        dense: seconds of the dense product.
    """
    pipes: dict[str, float] = {}
    tensor = 0.0
    for loop, turns in work:
        for pipe, number in loop.pipes.items():
            pipes[pipe] = pipes.get(pipe, 0) + number * turns / (PROCESSORS * SCHEDULERS)
        tensor += turns * sum(2 * number / FLOPS[kind] for kind, number in loop.products.items())
    pipe, most = busiest(pipes)
    return Bound(pipe, most, tensor, dense / max(tensor, most / CLOCK, moved / BYTES))


def dense_seconds(products: int, values: int, size: int, kind: str) -> float:
    """The bound of the dense product.

    Args:
        products: multiplications.
        values: that are read and written.
        size: bytes of each.
        kind: a key of `FLOPS`.
    """
    return max(2 * products / FLOPS[kind], size * values / BYTES)


_COUNTED = ("pipe", "kcycles", "tensor us", "allows")
HEAD = ("case", "MB", "dense us", *(f"{backend}: {what}" for backend in ("ours", "Triton") for what in _COUNTED))


def shown(row: dict) -> list[str]:
    """A row of the table whose columns are `HEAD`."""
    cells = [row["case"], f"{row['bytes'] / 1e6:.3g}", f"{1e6 * row['dense']:.3g}"]
    for backend in ("ours", "triton"):
        found = Bound(**row[backend])
        cells += [found.pipe, f"{found.cycles / 1e3:.3g}", f"{1e6 * found.tensor:.3g}", f"{found.ratio:.2f}x"]
    return cells
