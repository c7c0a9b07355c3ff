"""Where the free weights of a source start in its enumeration: a table that is kept for the sources used last."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...source import Source
from ..tables import SourceTables
from . import launch
from .generator import THREADS, calls, planes

_SEGMENT = 512  # calls: SEGMENT of csrc/cuda/generator.h


class FreeStarts(NamedTuple):
    """Call c of row n starts at segments[n, c // 512] + calls[n, c]: an eighth of a bit per weight.

    Both are 0, a null pointer, where nothing is frozen: kernels compute the starts.
    """

    segments: Tensor | int  # int64 [rows, segments]
    calls: Tensor | int  # int16 [rows, calls], without a sign
    locked: int  # locked weights of the source


_NOTHING_FROZEN = FreeStarts(0, 0, 0)


def free_starts(source: Source, device: torch.device) -> FreeStarts:
    """The starts; at the first call for a source and device they are counted, which a CUDA graph cannot capture."""
    return counted_starts(source, device) if planes(source) else _NOTHING_FROZEN


def starts_for(mask: Tensor, source: Source) -> tuple[Tensor | int, Tensor | int]:
    """The tables that a kernel needs for a mask: those of `FreeStarts` if it is compact, else none."""
    if mask.dim() == 2:
        return 0, 0
    return free_starts(source, mask.device)[:2]


@SourceTables
def counted_starts(source: Source, device: torch.device) -> FreeStarts:
    shape = source.rows, launch.blocks(calls(source), _SEGMENT)
    free = launch.workspace(shape, torch.int64, device)
    locked = launch.workspace(shape, torch.int32, device)
    starts = launch.workspace((source.rows, calls(source)), torch.int16, device)
    launch.enqueue(_launch(source), device, free, locked, starts)
    return FreeStarts((free.view(-1).cumsum(0) - free.view(-1)).view(shape), starts, int(locked.sum()))


@launch.planned
def _launch(source: Source) -> launch.Launch:
    segments = launch.blocks(calls(source), _SEGMENT)
    lanes = min(32, 1 << (calls(source) - 1).bit_length())
    return launch.Launch(
        file="count_free",
        kernel="slt_count_free",
        arguments="CountFree",
        blocks=launch.blocks(source.rows * segments * lanes, THREADS),
        threads=THREADS,
        values={"generator": source, "lanes": lanes},
        later=["free", "locked", "call_starts"],
    )
