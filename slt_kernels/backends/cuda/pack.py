"""Pack: scores and a threshold to the words of a mask, and how many weights it keeps, all on the device.

The words are one launch. The number that is kept is one atomic operation per block; where there are several blocks, a
launch before clears it, since the memory of an output holds anything.
"""

import torch
from torch import Tensor

from ...source import Source
from . import launch
from .clear import clear
from .free_starts import free_starts
from .generator import THREADS, calls, planes, takes


@launch.kernel(
    "pack",
    when=lambda scores, threshold, source, compact: (
        scores.dtype == threshold.dtype == torch.float32 and (compact or takes(source))
    ),
)
def pack(outputs: tuple[Tensor, Tensor], scores: Tensor, threshold: Tensor, source: Source, compact: bool) -> None:
    mask, kept = outputs
    scores, device = scores.contiguous(), scores.device
    starts = free_starts(source, device)
    if compact:
        blocks = max(1, launch.blocks(scores.numel(), 32 * THREADS))
        prepared, values = _compact(blocks), (scores, threshold, scores.numel(), mask, starts.locked, kept)
    else:
        blocks = launch.blocks(4 * source.rows * calls(source), THREADS)
        prepared, values = _resolved(source, blocks), (*starts[:2], scores, threshold, mask, kept)
    if blocks > 1:
        clear(kept)
    launch.enqueue(prepared, device, *values)


@launch.planned
def _compact(blocks: int) -> launch.Launch:
    return launch.Launch(
        file="pack",
        kernel="slt_pack_compact",
        arguments="PackCompact",
        blocks=blocks,
        threads=THREADS,
        values={},
        later=["scores", "threshold", "count", "mask", "locked", "kept"],
    )


@launch.planned
def _resolved(source: Source, blocks: int) -> launch.Launch:
    return launch.Launch(
        file="pack",
        kernel=f"slt_pack_resolved_{planes(source)}",
        arguments="PackResolved",
        blocks=blocks,
        threads=THREADS,
        values={"generator": source},
        later=["segment_starts", "call_starts", "scores", "threshold", "mask", "kept"],
    )
