"""Tiles: which part of a product a program computes, and the rules that size them.

The rule of each product is ``tiles`` in its file, made of what is here.
"""

from typing import NamedTuple

import torch

from . import FENCED, version
from .assembly import PTX
from .launch import Machine, blocks
from .words import SIGNED_CONSTANT

REGISTERS = 65536
"""Of a multiprocessor, from Volta to Blackwell."""


class Tile(NamedTuple):
    """What one program computes: BN rows of the weight (one call each) by BM columns; and how it runs."""

    BN: int
    BM: int
    num_warps: int
    num_stages: int
    programs: int  # resident on a multiprocessor: limits registers, and decides into how many parts k is split
    pieces: int = 1  # products per step; the weights of one piece are in registers at a time

    def meta(self) -> dict[str, int]:
        """The launch's compile-time arguments."""
        meta = {"BN": self.BN, "BM": self.BM, "num_warps": self.num_warps, "num_stages": self.num_stages}
        registers = REGISTERS // (32 * self.num_warps * self.programs) // 8 * 8
        if registers < 255 and torch.version.hip is None:  # the most per thread; AMD's compiler takes no limit
            meta["maxnreg"] = registers
        return meta

    def with_more_registers(self) -> "Tile":
        return self._replace(programs=max(1, self.programs - 1))


def needs_fences(machine: Machine, rows: int) -> bool:
    """Whether products of tiles of so many rows need `assembly.fenced`: those that Hopper computes asynchronously, 64
    rows at a time.

    On Blackwell, Triton's versions that would need it are refused.
    """
    return PTX.value and machine.generation == 9 and rows >= 64 and version() < FENCED


def resident(warps: int, columns: int, d: int, weight: int, compact: bool, plain: bool, old: bool) -> int:
    """How many programs of a forward or grad_input a multiprocessor holds at once without spilling registers.

    Byte weights and compact masks need many registers. ``plain``: a Linear of whole calls, which needs none for image
    addresses or bounds. ``old``: before Hopper, where a step's weights need some too.
    """
    light = weight == SIGNED_CONSTANT.value and not compact
    if not light or columns > (32 if d else 64):
        return 8 // warps
    if warps == 8:
        return 2 if plain and columns <= 32 else 1
    if columns > 32:
        return 3 if plain else 2
    return 2 + (plain and columns * d <= (32 if old else 64)) + (columns <= 16)


def pieces(columns: int, d: int, machine: Machine) -> int:
    """Products per step. From 64 columns on, float sums leave registers for half of a step's weights.

    Blackwell keeps sums and weights in tensor memory, so one product is enough.
    """
    return 2 if d == 0 and columns > 32 and machine.generation < 10 else 1


def narrowed(bm: int, columns: int, others: int, machine: Machine) -> int:
    """Columns per tile: ``bm``, halved while all tiles still run at once.

    Generating weights twice costs less than splitting k, whose partial sums go through memory.

    Args:
        others: how many tiles share a block of columns.
    """
    while bm > 32 and others * blocks(columns, bm // 2) <= 2 * machine.processors:
        bm //= 2
    return bm
