"""How a product is cut into programs: tiles of the output, and sums in parts.

A rule in each operation's file names the tile. Where the environment variable ``SLT_AUTOTUNE`` names a file, the rule's
tile and a few others are timed instead, once for each device, kind of layer and power of two of columns, and the
fastest is kept in that file.
"""

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from time import perf_counter
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from .words import SIGNED_CONSTANT
from .fixed_point import SUMMANDS, finish
from .launch import blocks, capturing, generation, processors

FILE = os.environ.get("SLT_AUTOTUNE") or None

REGISTERS = 65536
"""Of a multiprocessor, from Volta to Blackwell."""


class Tile(NamedTuple):
    """Of a program: rows of the layer (a call each), columns, and how it runs them."""

    BN: int
    BM: int
    num_warps: int
    num_stages: int
    programs: int  # that a multiprocessor holds at once: their registers fit, and sums are cut in parts for so many
    pieces: int = 1  # in which a step's product is taken: the weights of one are in registers at a time

    def meta(self) -> dict[str, int]:
        """What a launch takes of it."""
        meta = {"BN": self.BN, "BM": self.BM, "num_warps": self.num_warps, "num_stages": self.num_stages}
        registers = REGISTERS // (32 * self.num_warps * self.programs) // 8 * 8
        if registers < 255 and torch.version.hip is None:  # a thread has no more; and AMD's compiler takes no limit
            meta["maxnreg"] = registers
        return meta

    def with_more_registers(self) -> "Tile":
        return self._replace(programs=max(1, self.programs - 1))


def resident(warps: int, columns: int, d: int, weight: int, compact: bool, plain: bool, old: bool) -> int:
    """Programs of a forward or grad_input that a multiprocessor holds at once: the registers of more would not do.

    Weights of bytes and compact masks need many; ``plain`` is a Linear of whole calls, which needs none for the
    addresses of images or for bounds. ``old``: before Hopper, where the weights of a step take some as well.
    """
    light = weight == SIGNED_CONSTANT.value and not compact
    if not light or columns > (32 if d else 64):
        return 8 // warps
    if warps == 8:
        return 2 if plain and columns <= 32 else 1
    if columns > 32:
        return 3 if plain else 2
    return 2 + (plain and columns * d <= (32 if old else 64)) + (columns <= 16)


def pieces(columns: int, d: int, device: torch.device) -> int:
    """Of a step's product in floats: from 64 columns on, the sums leave registers for half of the weights of a step.

    Blackwell keeps sums and weights in its tensor memory, and waits for no product at all.
    """
    return 2 if d == 0 and columns > 32 and generation(device) < 10 else 1


def narrowed(bm: int, columns: int, others: int, device: torch.device) -> int:
    """Columns of a tile, ``others`` of which share a block of columns: ``bm``, or fewer while all tiles run at once.

    Weights that are made twice cost less than sums in two parts, which go through memory and are added by one program.
    """
    while bm > 32 and others * blocks(columns, bm // 2) <= 2 * processors(device):
        bm //= 2
    return bm


def choose(key: tuple, columns: int, device: torch.device, tiles: list[Tile], run: Callable[[Tile], Tensor]) -> Tile:
    """The tile to ``run`` with: the first, or where ``SLT_AUTOTUNE`` is set the fastest for ``key`` on this device.

    A run writes the same result whole, so that timing leaves no trace. Nothing is timed while a CUDA graph is captured:
    what is not known by then takes the first tile.
    """
    if columns >= 2**31 - 2**20:  # the last part of a sum over columns may end that far past them
        raise ValueError(f"{columns} rows of x, or output pixels: expected fewer than 2**31 - 2**20; split the batch")
    if FILE is None:
        return tiles[0]
    known = _known(FILE)
    name = device.type if device.type == "cpu" else torch.cuda.get_device_name(device)
    entry = f"{name}, Triton {triton.__version__}: {' '.join(map(str, key))} {triton.next_power_of_2(columns)}"
    if entry not in known and not capturing(device):
        times = {tile: _milliseconds(lambda tile=tile: run(tile), device) for tile in dict.fromkeys(tiles)}
        best = min(times, key=times.get)
        if times[best] == float("inf"):  # whatever the reason is, the caller's run meets it
            return tiles[0]
        known[entry] = best
        _keep(FILE, entry, best)
    return known.get(entry, tiles[0])


@cache
def _known(file: str) -> dict[str, Tile]:
    """What a file holds."""
    if not os.path.exists(file):
        return {}
    try:
        return {entry: Tile(*numbers) for entry, numbers in json.loads(Path(file).read_text()).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise ValueError(f"SLT_AUTOTUNE={file}: expected a file that an earlier run has written ({error})") from error


def _keep(file: str, entry: str, tile: Tile) -> None:
    """Adds to the file what is new; other processes may have added as well, and never read half of one."""
    _known.cache_clear()
    known = _known(file)
    known[entry] = tile
    part = f"{file}.{os.getpid()}"
    Path(part).write_text(json.dumps(known, indent=1) + "\n")
    os.replace(part, file)


def _milliseconds(run: Callable[[], Tensor], device: torch.device) -> float:
    """Median of a few runs; infinite for a tile that this device cannot run, or the compiler not compile."""
    try:
        if device.type == "cuda":
            with torch.cuda.device(device):
                return triton.testing.do_bench(run, warmup=5, rep=20, return_mode="median")
        started = perf_counter()
        run()
        return 1e3 * (perf_counter() - started)
    except (triton.runtime.errors.OutOfResources, triton.runtime.errors.PTXASError, RuntimeError):
        return float("inf")


# Sums in parts


ROOM = 2**24
"""Bytes that the parts of a sum may take."""


def split(
    steps: int, summands: int, tiles: int, size: int, d: int, programs: int, device: torch.device
) -> tuple[int, int]:
    """In how many parts a sum of ``steps``, of so many summands each, is taken, and the steps of each part.

    Enough for the ``programs`` that every multiprocessor holds at once, none with fewer than four steps, and all in
    ROOM for ``tiles`` of ``size`` outputs; but none with more summands than an int32 holds.
    """
    wanted = min(programs * processors(device) // tiles, blocks(steps, 4), ROOM // (tiles * size * (8 if d else 4)))
    needed = blocks(steps * summands, SUMMANDS) if d else 1
    of_each = blocks(steps, max(wanted, needed, 1))
    return blocks(steps, of_each), of_each


def room(parts: int, tiles: int, size: int, d: int, out: Tensor) -> tuple[Tensor, Tensor]:
    """Where the parts of ``tiles`` of ``size`` outputs meet in `store_product`: their sums, and counts of those there.

    Of a sum in one part nothing is kept, and ``out`` stands for both. The counts are new in each call, which costs it a
    memset: zeros that were kept would belong to one stream each, and to no graph that was captured.
    """
    if parts == 1:
        return out, out
    sums = torch.empty(tiles * parts * size, dtype=torch.int64 if d else torch.float32, device=out.device)
    return sums, torch.zeros(tiles, dtype=torch.int32, device=out.device)


HIP: tl.constexpr = tl.constexpr(torch.version.hip is not None)
ADDED: tl.constexpr = tl.constexpr(16)
"""Columns of a tile whose parts are added at once: few, so that several parts can be waited for together."""
COLUMNS: tl.constexpr = tl.constexpr(32)
"""So many of a tile are stored at once: the addresses of more, two registers a value, would not fit beside the sums."""


@triton.jit
def store_product(
    out,
    row,
    rows_there,
    first_column,
    columns,
    pitch,
    pixels,
    sums,
    bias,
    parts_sums,
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

    Columns lie ``pitch`` apart, and each ``pixels`` of them are one vector of x. SPLIT: ``sums`` are those of one part.
    Then each program leaves its part in memory and counts itself; the last of a tile adds them, always in the same
    order, and stores the product: no second kernel is launched, and nobody waits.
    """
    if SPLIT:
        bn: tl.constexpr = sums.shape[0]
        bm: tl.constexpr = sums.shape[1]
        m: tl.constexpr = ADDED if bm > ADDED else bm
        together: tl.constexpr = 4 if D == 0 else 2
        parts_sums += tl.cast(tile, tl.int64) * parts * (bn * bm)
        _leave(parts_sums + part * (bn * bm), sums, columns - first_column)
        if HIP:  # A barrier there waits for no store. An atomic does, of every thread: 512 are as many as there can be.
            tl.atomic_add(arrived + tile + tl.zeros([512], tl.int32), 0, sem="release")
        tl.debug_barrier()  # all threads' stores, before this program counts itself
        if tl.atomic_add(arrived + tile, 1) == parts - 1:
            for first in range(0, bm, m):
                column = first_column + first
                there = (column + tl.arange(0, m) < columns)[None, :]
                at = tl.arange(0, bn)[:, None] + bn * (first + tl.arange(0, m))[None, :]
                total = tl.zeros([bn, m], sums.dtype)
                for i in range(0, parts, together):
                    for j in tl.static_range(together):
                        inside = there & (tl.full([1, m], i + j, tl.int32) < parts)
                        total += tl.load(parts_sums + (i + j) * (bn * bm) + at, mask=inside, other=0)
                _store(out, row, rows_there, column, columns, pitch, pixels, total, bias, unit, scale, D, WEIGHT, BIAS)
    else:
        _store(out, row, rows_there, first_column, columns, pitch, pixels, sums, bias, unit, scale, D, WEIGHT, BIAS)


@triton.jit
def _leave(place, sums, columns):
    """Stores a part's sums [BN, BM] column by column. All rows: there is room for whole tiles."""
    bn: tl.constexpr = sums.shape[0]
    bm: tl.constexpr = sums.shape[1]
    if bm > COLUMNS:
        left, right = _halves(sums)
        _leave(place, left, columns)
        _leave(place + bn * bm // 2, right, columns - bm // 2)
    else:
        column = tl.arange(0, bm)[None, :]
        tl.store(place + tl.arange(0, bn)[:, None] + bn * column, sums, mask=column < columns)


@triton.jit
def _store(
    out,
    row,
    rows_there,
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
    """Finishes sums [BN, BM], and stores them as `store_product` says."""
    bm: tl.constexpr = sums.shape[1]
    if bm > COLUMNS:
        left, right = _halves(sums)
        middle = first_column + bm // 2
        _store(out, row, rows_there, first_column, columns, pitch, pixels, left, bias, unit, scale, D, WEIGHT, BIAS)
        _store(out, row, rows_there, middle, columns, pitch, pixels, right, bias, unit, scale, D, WEIGHT, BIAS)
    else:
        column = first_column + tl.arange(0, bm)
        vector = tl.minimum(column, columns - 1) // pixels
        y = finish(sums, unit, vector[None, :], scale, D, WEIGHT)
        if BIAS:
            y += tl.load(bias + row, mask=rows_there, other=0).to(tl.float32)[:, None]
        at = column.to(tl.int64)[None, :] * pitch + row[:, None]
        tl.store(out + at, y, mask=rows_there[:, None] & (column < columns)[None, :])


@triton.jit
def _halves(sums):
    """The left and the right half of the columns; no value leaves its thread."""
    return sums.reshape([sums.shape[0], 2, sums.shape[1] // 2]).permute(0, 2, 1).split()
