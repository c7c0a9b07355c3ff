"""Linear's forward for few vectors, by bit planes or digits of x: ``csrc/cuda/forward_small.h``."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...philox import FREEZE, SIGN, VALUE
from ...source import WEIGHTS, Source
from . import launch
from .arguments import ELEMENTS, digit_count

SIGNED = WEIGHTS.index("signed_constant")
STEP = 512  # k of one step
SUMMANDS = 2**17  # products of a byte and a digit that an int32 sum holds
_GROUPS, _GROUP_ROWS, _THREADS = 4, 64, 512
_HEADER = 1536  # bytes of `Shared`
_BIT_VECTORS = {2: (1, 2, 4), 3: (1, 2)}  # by digits: at most 64 bit planes
_DIGIT_COLUMNS = (8, 16, 32, 64, 128)
_CHUNK_BYTES = 96 * 1024  # more of x than this in shared memory gains nothing

# Instructions of a warp: of 16 rows and one step of weights by bit planes or digits, to convert one step of a vector,
# and a block's barriers with its cluster. Counted in machine code; only their proportions matter.
_STEP_COST = {True: 130, False: 300}
_CONVERT_COST, _CLUSTER_COST = 400, 2000


class Kernel(NamedTuple):
    """A kernel, and the size of its second operand."""

    file: str
    name: str
    step_bytes: int  # of shared memory
    bits: bool


class Shape(NamedTuple):
    """How a product is cut: see the members of `ForwardSmall`."""

    tiles: int
    cluster: int
    block_steps: int
    chunk_steps: int


def takes(x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> bool:
    if x.dtype not in ELEMENTS or mask.dim() == 1:
        return False
    return bool(len(x)) and _launch(source, x.dtype, len(x), digit_count(x), launch.machine(x.device)) is not None


def forward(
    y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, digits: int
) -> None:
    run = _launch(source, x.dtype, len(x), digits, launch.machine(x.device))
    launch.enqueue(run, x.device, mask, x, scale, 0 if bias is None else bias, y)


def kernel(source: Source, batch: int, digits: int, capability: int) -> Kernel | None:
    """The kernel for a batch; None if there is none for so many vectors."""
    if source.weight == SIGNED and capability < 100:  # later tensor cores do not multiply bits
        for vectors in _BIT_VECTORS[digits]:
            if batch <= vectors:
                planes = 8 * digits
                name = f"slt_forward_small_bits_{planes}_{vectors}"
                return Kernel("forward_small_bits", name, 4 * 16 * planes * vectors, True)
    file = "forward_small_signs" if source.weight == SIGNED else "forward_small_bytes"
    for columns in _DIGIT_COLUMNS:
        if batch * (2 if digits == 2 else 4) <= columns:
            return Kernel(file, f"slt_{file}_{columns}", 32 * (16 * columns + 16), False)
    return None


def shape(source: Source, batch: int, kernel: Kernel, machine: launch.Machine) -> Shape | None:
    """The cheapest cut that fits; None if there is none."""
    skipped = source.first_word % 4
    steps = launch.blocks(source.words + skipped, STEP // 32)
    row_tiles = launch.blocks(source.rows, _GROUP_ROWS)
    room = min(machine.shared - _HEADER, _CHUNK_BYTES)
    if machine.shared - _HEADER < _sum_bytes(batch):
        return None
    best = None
    for tiles in (1, 2, 4):
        parts = _GROUPS // tiles
        fitting = room // kernel.step_bytes // parts * parts
        if fitting == 0:
            continue
        for cluster in _clusters(machine.capability):
            block_steps = launch.blocks(steps, cluster)
            if cluster > 1 and (cluster - 1) * block_steps >= steps:
                continue  # the last block would have nothing
            chunk_steps = min(fitting, launch.blocks(block_steps, parts) * parts)
            group_steps = launch.blocks(block_steps, parts)
            if not kernel.bits and group_steps * STEP > SUMMANDS:
                continue
            blocks = launch.blocks(row_tiles, tiles) * cluster
            waves = launch.blocks(blocks, machine.processors)
            cost = _GROUPS * _STEP_COST[kernel.bits] * group_steps + _CONVERT_COST * block_steps * batch // 4
            cost = waves * (cost + _CLUSTER_COST * (cluster > 1))
            if best is None or cost < best[0]:
                best = cost, Shape(tiles, cluster, block_steps, chunk_steps)
    return best and best[1]


def _clusters(capability: int) -> tuple[int, ...]:
    """Sizes of clusters that launches may have; blocks of a cluster share k."""
    return (1, 2, 4, 8) if capability // 10 in (9, 10, 12) else (1,)


def _sum_bytes(batch: int) -> int:
    return 8 * _GROUPS * _GROUP_ROWS * batch


@launch.planned
def _launch(
    source: Source, dtype: torch.dtype, batch: int, digits: int, machine: launch.Machine
) -> launch.Launch | None:
    """The launch for a batch; None if the kernels do not take it."""
    chosen = kernel(source, batch, digits, machine.capability)
    cut = chosen and shape(source, batch, chosen, machine)
    if chosen is None or cut is None:
        return None
    return launch.Launch(
        file=chosen.file,
        kernel=chosen.name,
        arguments="ForwardSmall",
        blocks=launch.blocks(launch.blocks(source.rows, _GROUP_ROWS), cut.tiles) * cut.cluster,
        threads=_THREADS,
        shared=_HEADER + max(cut.chunk_steps * chosen.step_bytes, _sum_bytes(batch)),
        cluster=cut.cluster,
        values={
            "source": source,
            "calls": launch.calls(source, SIGN if source.weight == SIGNED else VALUE),
            "freeze": launch.calls(source, FREEZE),
            "row_starts": 0,
            "call_starts": 0,
            "batch": batch,
            "element": ELEMENTS[dtype],
            "digits": digits,
            **cut._asdict(),
        },
        later=["mask", "x", "scale", "bias", "y"],
    )
