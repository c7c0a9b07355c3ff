"""The cases of `cuda_sass.py --bounds`: the kernels that both GPU backends choose, and their main loops."""

from collections.abc import Iterator
from typing import NamedTuple

import bounds
import sass
import torch
import triton_sass
from bounds import Loop
from gpu_check import RESNET50

from slt_kernels.backends.cuda import forward_small, grad_input, grad_scores, launch, product
from slt_kernels.conv_geometry import Window
from slt_kernels.source import Source

SIZE = 4096  # rows and fan of Linear
BATCHES = (1, 4, 16, 64, 256, 4096)
IMAGES = 64
CALL = 128  # k
MACHINE = launch.Machine(90, bounds.PROCESSORS, 227 * 1024)
WARPS = {"product": (8, 4), "grad_input": (8, 4), "grad_scores": (8, 0)}  # that multiply, and that only produce
PRODUCED = {"LDG.E.128": 1, "IMAD.WIDE": 18, "SYNCS.ARRIVE": 1}  # of a step, besides copies: a mask, and a Philox call


class Precision(NamedTuple):
    dtype: torch.dtype
    digits: int  # of forward and grad_input; 0: products of floats
    dense: str  # of the dense product, a key of `bounds.FLOPS`


PRECISIONS = {
    "bfloat16": Precision(torch.bfloat16, 0, "bf16"),
    "float32 high": Precision(torch.float32, 2, "tf32"),
    "float32 highest": Precision(torch.float32, 3, "float32"),
}
WINDOW = Window(3, 3, padding_h=1, padding_w=1)


class Case(NamedTuple):
    """An operation on a layer: a Linear of ``SIZE``, or a 3x3 convolution of ``channels`` and images of ``size``."""

    operation: str
    precision: str
    batch: int
    channels: int = 0
    size: int = 0

    @property
    def name(self) -> str:
        where = f"conv 3x3 {self.channels} {self.size}x{self.size}" if self.channels else self.operation
        return f"{where} {self.precision}, batch {self.batch}"

    @property
    def rows(self) -> int:
        return self.channels or SIZE

    @property
    def fan(self) -> int:
        return 9 * self.channels or SIZE

    @property
    def columns(self) -> int:
        return self.batch * (self.size**2 or 1)


def cases() -> Iterator[Case]:
    for precision in PRECISIONS:
        for batch in BATCHES:
            yield Case("forward", precision, batch)
        for operation in ("grad_input", "grad_scores"):
            yield Case(operation, precision, 4096)
        for channels, size in RESNET50:
            yield Case("forward", precision, IMAGES, channels, size)


def row(case: Case, codes: dict[str, str]) -> dict:
    """A case's bounds; ``codes``: the code of our kernels."""
    how = PRECISIONS[case.precision]
    size, weights = how.dtype.itemsize, case.rows * case.fan
    values = case.columns * (case.rows + (case.channels or SIZE))  # in and out, or both gradients
    dense = bounds.dense_seconds(weights * case.columns, values + weights, size, how.dense)
    moved = size * values + (8 * weights if case.operation == "grad_scores" else weights / 8)
    result = {"case": case.name, "bytes": moved, "dense": dense}
    for backend, work in (("ours", ours(case, codes)), ("triton", theirs(case))):
        result[backend] = bounds.bound(work, moved, dense)._asdict()
    return result


# Ours


def ours(case: Case, codes: dict[str, str]) -> list[tuple[Loop, float]]:
    """The loops of our kernel, and the turns of all warps."""
    how, source = PRECISIONS[case.precision], Source.of(case.rows, case.fan, seed=1, layer=0)
    digits = how.digits or 2  # of few vectors
    if case.operation == "grad_scores":
        shape = grad_scores.Shape(case.columns, case.rows, case.fan)
        (first, *_), _ = grad_scores._launches(source, how.dtype, digits == 3, shape, MACHINE)
        name = first.describe(*[0] * 9)["kernel"]
        tile_rows = 256 if name.endswith("_256") else 128
        done = _tiles(case.rows, tile_rows) * _tiles(case.fan, CALL) * _tiles(case.columns, 64)
        return _turns("grad_scores", codes[name], done * (3 if how.dense == "float32" else 1), {r"H\w*MMA": 4})
    if case.operation == "grad_input":
        chosen = grad_input.kernel(how.dtype, source, how.digits, case.fan, case.columns, case.fan // CALL, MACHINE)
        done = _tiles(case.rows, CALL) * _tiles(case.fan, chosen.k) * _tiles(case.columns, chosen.columns)
        wanted = PRODUCED | {"LDGSTS": chosen.stage_bytes // (16 * 128)}
        return _turns("grad_input", codes[chosen.name], done * (how.digits or 1), {r"[HI]\w*MMA": 4}, wanted)
    few = None if case.channels else forward_small.kernel(source, case.batch, digits, MACHINE.capability)
    if few:
        code = sass.read(codes[few.name])
        loop = _loop(code, {r"\w*MMA": 1, "LDG": 2})
        steps = loop.pipes["wide"] / 36  # of 64 rows and 512 k: a thread makes two calls
        return [(loop, 4 * (case.rows / 64) * (case.fan / 512) / steps)]
    images = product.Images(case.columns, (SIZE, 1, 1), Window(1, 1), True)
    if case.channels:
        images = product.Images(case.batch, (case.channels, case.size, case.size), WINDOW, True)
    chosen = product.kernel(how.dtype, source, how.digits, images, MACHINE)
    done = _tiles(case.rows, chosen.rows) * _tiles(case.columns, chosen.columns) * _tiles(case.fan, CALL)
    copies = (how.digits or 2) * chosen.columns // 16
    wanted = PRODUCED | {"LDGSTS": copies}
    if case.channels:
        wanted["SHF.R.U64"] = 2 if how.digits else 4  # the divisions that find taps
        if not how.digits and case.channels % CALL:  # half a step each
            wanted["IMAD.WIDE"] += copies
    return _turns("product", codes[chosen.name], done * (how.digits or 1), {r"[HI]\w*MMA": 4}, wanted)


def _tiles(count: int, size: int) -> int:
    """What tiles of that size cover."""
    return size * launch.blocks(count, size)


def _turns(kernel: str, code: str, done: int, consumers: dict, producers: dict | None = None) -> list:
    """The loops of warps that multiply, and of those that only produce, with what all tiles together multiply."""
    multiply, produce = WARPS[kernel]
    read = sass.read(code)
    loop = _loop(read, consumers)
    turns = done / sum(loop.products.values())
    made = [(_loop(read, producers), turns * produce / multiply)] if producers else []
    return [(loop, turns), *made]


def _loop(code: sass.Code, wanted: dict[str, int]) -> Loop:
    """The loop that has what is wanted; ValueError if none has: the kernel is another than these cases describe."""
    turn = sass.shortest_turn(code, wanted)
    if not turn:
        raise ValueError(f"no loop has {wanted}")
    return bounds.loop_of(turn)


# Triton's


def theirs(case: Case) -> list[tuple[Loop, float]]:
    """The loop of Triton's kernel, and the turns of all warps."""
    how = PRECISIONS[case.precision]
    dtype = {torch.bfloat16: "*bf16", torch.float32: "*fp32"}[how.dtype]
    if case.operation == "forward":
        flags = {"CONV": case.channels > 0, "ONE_TAP": case.channels % CALL == 0}
        make = triton_sass._forward(dtype, how.digits, case.columns, rows=case.rows, **flags)
    elif case.operation == "grad_input":
        make = triton_sass._grad_input(dtype, how.digits, case.columns, rows=case.rows)
    else:
        precision = "tf32" if case.precision == "float32 high" else "tf32x3"
        make = triton_sass._grad_scores(dtype, rows=case.rows, precision=precision)
    kernel = make(triton_sass.MACHINES[90])
    *_, code = triton_sass.machine_code(kernel, 90)
    constants = kernel.constants
    loop = bounds.loop_of(triton_sass._main_loop(code)[1])
    if case.operation == "grad_input":
        done = _tiles(case.rows, constants["BN"]) * _tiles(case.fan, constants["BC"])
    else:
        done = _tiles(case.rows, constants["BN"]) * _tiles(case.fan, CALL)
    done *= _tiles(case.columns, constants["BM"])
    products = how.digits if case.operation != "grad_scores" else 3 if how.dense == "float32" else 1
    return [(loop, done * (products or 1) / sum(loop.products.values()))]
