"""Select: the threshold, an exact order statistic of the magnitudes, without a sort, a copy or a synchronization.

A launch per pass over all tensors, whose addresses are arguments of the kernel. Of more than 192 tensors a pass is
several launches; the last block of the last one finds the next bits.
"""

from itertools import chain

import torch
from torch import Tensor

from . import launch
from .clear import clear

_MOST, _PIECE = 192, 8192  # of `ScoreTensors` in csrc/cuda/arguments.h
_THREADS = 512
_PASSES = 3
_STATE = 2 * (_PASSES * 2048) + 6  # 32-bit words of a `SelectState`
_BLOCKS_PER_PROCESSOR = 4


@launch.kernel("select", when=lambda scores, rank: all(s.dtype == torch.float32 for s in scores))
def select(threshold: Tensor, scores: list[Tensor], rank: int) -> None:
    count, device = sum(s.numel() for s in scores), scores[0].device
    if rank < 1 or rank >= count:
        threshold.fill_(float("-inf" if rank < 1 else "inf"))
        return
    scores = [s.contiguous() for s in scores if s.numel()]
    state = launch.workspace((_STATE,), torch.int32, device)
    clear(state)
    parts = [scores[i : i + _MOST] for i in range(0, len(scores), _MOST)]
    pieces = [sum(launch.blocks(s.numel(), _PIECE) for s in part) for part in parts]
    blocks = [min(p, _BLOCKS_PER_PROCESSOR * launch.machine(device).processors) for p in pieces]
    tables = [tuple(chain.from_iterable((s.data_ptr(), s.numel()) for s in part)) for part in parts]
    for number in range(_PASSES):
        for part, table, size in zip(parts, tables, blocks, strict=True):
            values = table, sum(blocks), rank, state, threshold
            launch.enqueue(_launch(number, size), device, *values, reads=tuple(part))


@launch.planned
def _launch(number: int, blocks: int) -> launch.Launch:
    return launch.Launch(
        file="select",
        kernel=f"slt_select_{number}",
        arguments="Select",
        blocks=blocks,
        threads=_THREADS,
        values={},
        later=["tensors", "blocks", "rank", "state", "out"],
    )
