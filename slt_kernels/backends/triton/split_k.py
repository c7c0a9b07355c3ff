"""Split k: sums over parts of k in several programs, added and stored by the last of them."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .fixed_point import SUMMANDS, finish
from .launch import Machine, blocks

WORKSPACE_BYTES = 2**24
"""The most that the partial sums of a product may take."""


def split(steps: int, summands: int, tiles: int, size: int, d: int, programs: int, machine: Machine) -> tuple[int, int]:
    """Into how many parts a sum over ``steps`` of k is split, and the steps of each part.

    There are enough parts to fill every multiprocessor with ``programs``, as long as each has four steps or more and
    the partial sums fit in WORKSPACE_BYTES. An int32 sum is split in any case before it can overflow.

    Args:
        summands: products added in each step.
        tiles: of the output, ``size`` elements each.
        d: digits of the inputs; 0 for float products.
        programs: `Tile.programs`.
    """
    by_workspace = WORKSPACE_BYTES // (tiles * size * (8 if d else 4))
    wanted = min(programs * machine.processors // tiles, blocks(steps, 4), by_workspace)
    needed = blocks(steps * summands, SUMMANDS) if d else 1
    steps_per_part = blocks(steps, max(wanted, needed, 1))
    return blocks(steps, steps_per_part), steps_per_part


def workspace(parts: int, tiles: int, size: int, d: int, out: Tensor) -> tuple[Tensor, Tensor]:
    """The partial sums of ``tiles`` of ``size`` outputs, and for each tile a count of the parts that have arrived.

    For a sum in one part both are ``out``, which `store_product` then does not use as a workspace. The counts are
    zeroed in each call, at the cost of a memset: kept ones could not be shared between streams or captured graphs.
    """
    if parts == 1:
        return out, out
    sums = torch.empty(tiles * parts * size, dtype=torch.int64 if d else torch.float32, device=out.device)
    return sums, torch.zeros(tiles, dtype=torch.int32, device=out.device)


HIP: tl.constexpr = tl.constexpr(torch.version.hip is not None)
COLUMNS_PER_ADD: tl.constexpr = tl.constexpr(16)
"""Columns of a tile whose parts are added at once: few, so that the loads of several parts are in flight together."""
COLUMNS_PER_STORE: tl.constexpr = tl.constexpr(32)
"""Columns of a tile stored at once: more addresses, two registers per value, would not fit beside the sums."""


@triton.jit
def store_product(
    out,
    row,
    row_mask,
    first_column,
    columns,
    pitch,
    pixels,
    sums,
    bias,
    partial_sums,
    arrived,
    tile,
    part,
    parts,
    unit,
    scale,
    D: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """Stores a tile [BN, BM] of a product: rows ``row`` [BN] of the columns from ``first_column`` on.

    Columns are ``pitch`` elements apart; ``pixels`` consecutive columns belong to one vector of x. SPLIT: ``sums`` are
    those of one part. Each program then stores its part in the workspace and increments the tile's count; the last one
    adds all parts, always in the same order, and stores the product. No second kernel is launched and no program waits.
    """
    if SPLIT:
        bn: tl.constexpr = sums.shape[0]
        bm: tl.constexpr = sums.shape[1]
        m: tl.constexpr = COLUMNS_PER_ADD if bm > COLUMNS_PER_ADD else bm
        together: tl.constexpr = 4 if D == 0 else 2
        partial_sums += tl.cast(tile, tl.int64) * parts * (bn * bm)
        _store_part(partial_sums + part * (bn * bm), sums, columns - first_column)
        if HIP:  # a barrier does not wait for stores there; a release atomic of each thread, at most 512, does
            tl.atomic_add(arrived + tile + tl.zeros([512], tl.int32), 0, sem="release")
        tl.debug_barrier()  # all threads have stored before the count rises
        if tl.atomic_add(arrived + tile, 1) == parts - 1:
            for first in range(0, bm, m):
                column = first_column + first
                valid = (column + tl.arange(0, m) < columns)[None, :]
                at = tl.arange(0, bn)[:, None] + bn * (first + tl.arange(0, m))[None, :]
                total = tl.zeros([bn, m], sums.dtype)
                for i in range(0, parts, together):
                    for j in tl.static_range(together):
                        inside = valid & (tl.full([1, m], i + j, tl.int32) < parts)
                        total += tl.load(partial_sums + (i + j) * (bn * bm) + at, mask=inside, other=0)
                _store(out, row, row_mask, column, columns, pitch, pixels, total, bias, unit, scale, D, WEIGHT, BIAS)
    else:
        _store(out, row, row_mask, first_column, columns, pitch, pixels, sums, bias, unit, scale, D, WEIGHT, BIAS)


@triton.jit
def _store_part(place, sums, columns):
    """Stores a part's sums [BN, BM] in the workspace, column by column; rows past the end too, as tiles are whole."""
    bn: tl.constexpr = sums.shape[0]
    bm: tl.constexpr = sums.shape[1]
    if bm > COLUMNS_PER_STORE:
        left, right = _halves(sums)
        _store_part(place, left, columns)
        _store_part(place + bn * bm // 2, right, columns - bm // 2)
    else:
        column = tl.arange(0, bm)[None, :]
        tl.store(place + tl.arange(0, bn)[:, None] + bn * column, sums, mask=column < columns)


@triton.jit
def _store(
    out,
    row,
    row_mask,
    first_column,
    columns,
    pitch,
    pixels,
    sums,
    bias,
    unit,
    scale,
    D: tl.constexpr,
    WEIGHT: tl.constexpr,
    BIAS: tl.constexpr,
):
    """The epilogue of sums [BN, BM], stored as in `store_product`."""
    bm: tl.constexpr = sums.shape[1]
    if bm > COLUMNS_PER_STORE:
        left, right = _halves(sums)
        middle = first_column + bm // 2
        _store(out, row, row_mask, first_column, columns, pitch, pixels, left, bias, unit, scale, D, WEIGHT, BIAS)
        _store(out, row, row_mask, middle, columns, pitch, pixels, right, bias, unit, scale, D, WEIGHT, BIAS)
    else:
        column = first_column + tl.arange(0, bm)
        vector = tl.minimum(column, columns - 1) // pixels
        y = finish(sums, unit, vector[None, :], scale, D, WEIGHT)
        if BIAS:
            y += tl.load(bias + row, mask=row_mask, other=0).to(tl.float32)[:, None]
        at = column.to(tl.int64)[None, :] * pitch + row[:, None]
        tl.store(out + at, y, mask=row_mask[:, None] & (column < columns)[None, :])


@triton.jit
def _halves(sums):
    """The left and the right half of the columns; every value stays in its thread."""
    return sums.reshape([sums.shape[0], 2, sums.shape[1] // 2]).permute(0, 2, 1).split()
