"""How kernels cut a source: Philox calls of 128 weights, and the bit planes of FREEZE that decide."""

from torch import Tensor

from ...source import Source

THREADS = 256  # of a block; four of them have the words of a call


def calls(source: Source) -> int:
    """Philox calls that hold words of a row."""
    return (source.first_word % 4 + source.words + 3) // 4


def takes(source: Source) -> bool:
    """Whether kernels can number the source's calls in 31 bits."""
    return source.rows * calls(source) < 2**31 - THREADS


def planes(source: Source) -> int:
    """How many planes decide what is frozen: 0 if nothing is, 4 if both thresholds are multiples of 16, or else 8."""
    if source.prune_below == 0 and source.lock_from == 256:
        return 0
    return 4 if source.prune_below % 16 == source.lock_from % 16 == 0 else 8


def form(mask: Tensor, source: Source) -> str:
    """The end of the name of the kernel for that form of a mask."""
    return "resolved" if mask.dim() == 2 else str(planes(source))
