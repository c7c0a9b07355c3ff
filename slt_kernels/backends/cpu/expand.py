"""A resolved mask from a compact one on the CPU."""

from torch import Tensor

from ...bits import words_for
from ...source import Source
from . import _cpu, threads
from .arguments import check_count, free_offsets, kernel


@kernel("expand")
def expand(words: Tensor, mask: Tensor, source: Source) -> None:
    offsets = free_offsets(source)
    check_count("mask", mask.numel(), words_for(int(offsets[-1])), source)
    mask = mask.contiguous()
    _cpu.expand(
        source=source,
        compact=mask.data_ptr(),
        offsets=offsets.data_ptr(),
        out=words.data_ptr(),
        threads=threads(),
    )
