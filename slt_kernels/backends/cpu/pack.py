"""A mask from scores on the CPU."""

import torch
from torch import Tensor

from ...source import Source
from . import _cpu, threads
from .arguments import check_count, count_frozen, kernel, without_float64


@kernel("pack", when=lambda scores, *_: without_float64(scores))
def pack(outputs: tuple[Tensor, Tensor], scores: Tensor, threshold: Tensor, source: Source, compact: bool) -> None:
    mask, kept = outputs
    offsets, locked = count_frozen(source)
    check_count("scores", scores.numel(), int(offsets[-1]), source)
    scores = scores.detach().contiguous()
    _cpu.pack(
        source=source,
        scores=scores.data_ptr(),
        threshold=threshold.detach().view(torch.int32).item() & 0xFFFFFFFF,  # its bits: as a float it might become 0
        offsets=offsets.data_ptr(),
        locked=locked,
        compact=compact,
        out=mask.data_ptr(),
        kept=kept.data_ptr(),
        threads=threads(),
    )
