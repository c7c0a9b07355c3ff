"""Linear's forward for few vectors, by bit planes or digits of x: ``csrc/cuda/forward_small.h``."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...source import Source
from .. import registry
from ..arguments import digit_count
from . import launch
from .arguments import ELEMENTS, SIGNED, aligned, padded
from .free_starts import starts_for
from .generator import calls
from .generator import takes as numbered

STEP_CALLS = 4  # of the 512 k of one step
_GROUP_ROWS, _GROUP_THREADS = 64, 128
_HEADER = 1536  # bytes of `Shared`
_BIT_VECTORS = {2: (1, 2, 4), 3: (1, 2)}  # by digits: at most 64 bit planes
_DIGIT_COLUMNS = (16, 32, 64, 128)
_COMPACT_COLUMNS = 16  # with more columns of digits, a compact mask is expanded before
_MOST_SHARED = 160 * 1024  # the rest of a multiprocessor's memory is a cache; fewer than 2**17 products are in a sum

# Instructions of a warp: of 16 rows and one step of weights, by bit planes or digits; of a chunk's sums; to convert one
# step of a vector; and what the barriers of a cluster take. Only their proportions matter.
_STEP_COST = {True: 130, False: 300}
_FINISH_COST, _CONVERT_COST, _CLUSTER_COST = 200, 400, 2000


class Kernel(NamedTuple):
    """A kernel without the form of its mask."""

    file: str
    name: str
    groups: int  # of four warps in a block
    step_bytes: int  # of the second operand in shared memory
    bits: bool
    compact: bool  # whether there is one for compact masks


class Cut(NamedTuple):
    """How a product is cut: see the members of `ForwardSmall`."""

    tiles: int
    cluster: int
    steps: int
    block_steps: int
    chunk_steps: int
    sums_at: int


def takes(x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> bool:
    """Whether there is a kernel for the product; its masks of either form."""
    if x.dtype not in ELEMENTS or len(x) == 0:
        return False
    return prepared(source, x.dtype, len(x), digit_count(x), False, launch.machine(x.device)) is not None


def forward(y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> None:
    """Writes ``y``; x is contiguous, and bias float32."""
    machine, digits = launch.machine(x.device), digit_count(x)
    run = prepared(source, x.dtype, len(x), digits, mask.dim() == 1, machine)
    if run is None:  # no kernel for this form
        mask = registry.run("expand", mask, source)
        run = prepared(source, x.dtype, len(x), digits, False, machine)
    starts = starts_for(mask, source)
    launch.enqueue(run, x.device, *starts, aligned(mask), aligned(padded(x, 4)), scale, 0 if bias is None else bias, y)


def kernel(source: Source, batch: int, digits: int, capability: int) -> Kernel | None:
    """The kernel for a batch; None if there is none for so many vectors."""
    warpgroups = capability // 10 == 9  # products of a warpgroup, which take fewer registers
    if source.weight == SIGNED and capability < 100:  # later tensor cores do not multiply bits
        for vectors in _BIT_VECTORS[digits]:
            if batch <= vectors:
                name = f"slt_forward_small_bits_{8 * digits}_{vectors}"
                groups = 2 if vectors == 4 and not warpgroups else 4
                return Kernel("forward_small_bits", name, groups, 4 * 16 * 8 * digits * vectors, True, True)
    file = "forward_small_signs" if source.weight == SIGNED else "forward_small_bytes"
    for columns in _DIGIT_COLUMNS:
        if batch * (2 if digits == 2 else 4) <= columns:
            few = columns == 128 or (columns == 64 and not warpgroups)
            name, step_bytes = f"slt_{file}_{columns}", 32 * (16 * columns + 16)
            return Kernel(file, name, 2 if few else 4, step_bytes, False, columns <= _COMPACT_COLUMNS)
    return None


def cut(source: Source, batch: int, kernel: Kernel, machine: launch.Machine) -> Cut | None:
    """The cheapest cut that fits; None if there is none."""
    steps = launch.blocks(calls(source), STEP_CALLS)
    row_tiles = launch.blocks(source.rows, _GROUP_ROWS)
    sums = sum_bytes(kernel, batch)
    room = min(machine.shared, _MOST_SHARED) - _HEADER
    if room < sums:
        return None
    best = None
    for tiles in (1, 2, 4)[: 1 + kernel.groups // 2]:
        parts = kernel.groups // tiles
        for cluster in clusters(machine.capability):
            if cluster > steps:
                continue
            block_steps = launch.blocks(steps, cluster)
            group_steps = launch.blocks(block_steps, parts)
            blocks = launch.blocks(row_tiles, tiles) * cluster
            chunk_steps = group_steps * parts
            sums_at = _HEADER
            if chunk_steps * kernel.step_bytes > room:  # several chunks: the sums need their own memory
                multiple = parts * (2 if kernel.bits else 1)  # loops of bit planes may be unrolled twice
                chunk_steps = (room - sums) // kernel.step_bytes // multiple * multiple
                sums_at += chunk_steps * kernel.step_bytes
                if chunk_steps == 0:
                    continue
            chunks = launch.blocks(block_steps, chunk_steps)
            cost = kernel.groups * (_STEP_COST[kernel.bits] * group_steps + _FINISH_COST * chunks)
            cost += _CONVERT_COST * block_steps * batch // 4 + _CLUSTER_COST * (cluster > 1)
            # Parts of a chip seldom have a multiple of eight multiprocessors, and a cluster is in one part.
            usable = machine.processors if cluster < 8 else max(1, machine.processors * 7 // 8)
            cost *= launch.blocks(blocks, usable)
            if best is None or cost < best[0]:
                best = cost, Cut(tiles, cluster, steps, block_steps, chunk_steps, sums_at)
    return best and best[1]


def clusters(capability: int) -> tuple[int, ...]:
    """The sizes of clusters that a device launches."""
    return (1, 2, 4, 8) if capability // 10 in (9, 10, 12) else (1,)


def sum_bytes(kernel: Kernel, batch: int) -> int:
    """The shared memory of a block's sums."""
    return 8 * kernel.groups * _GROUP_ROWS * batch


@launch.planned
def prepared(
    source: Source, dtype: torch.dtype, batch: int, digits: int, compact: bool, machine: launch.Machine
) -> launch.Launch | None:
    """The launch for a batch; None if there is none."""
    chosen = kernel(source, batch, digits, machine.capability)
    if chosen is None or not numbered(source) or (compact and not chosen.compact):
        return None
    shape = cut(source, batch, chosen, machine)
    if shape is None:
        return None
    return launch.Launch(
        file=chosen.file,
        kernel=chosen.name + "_compact" * compact,
        arguments="ForwardSmall",
        blocks=launch.blocks(launch.blocks(source.rows, _GROUP_ROWS), shape.tiles) * shape.cluster,
        threads=chosen.groups * _GROUP_THREADS,
        shared=max(_HEADER + shape.chunk_steps * chosen.step_bytes, shape.sums_at + sum_bytes(chosen, batch)),
        cluster=shape.cluster,
        values={
            "generator": source,
            "eight_rows": 8 * source.row_calls,
            "batch": batch,
            "pitch": launch.blocks(source.fan, 4) * 4,
            "element": ELEMENTS[dtype],
            "digits": digits,
            "aligned_words": source.words % 4 == 0 and source.first_word % 4 == 0,
            "tiles_log": shape.tiles.bit_length() - 1,
            "cluster_log": shape.cluster.bit_length() - 1,
            **{name: value for name, value in shape._asdict().items() if name not in ("tiles", "cluster")},
        },
        later=["segment_starts", "call_starts", "mask", "x", "scale", "bias", "y"],
    )
