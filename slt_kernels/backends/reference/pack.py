"""A mask from scores and a threshold."""

from torch import Tensor

from ... import bits
from ...source import Source
from .oracle import oracle


@oracle
def pack(scores: Tensor, threshold: Tensor, source: Source, compact: bool) -> tuple[Tensor, Tensor]:
    """Keeps the free weights with |score| > threshold. A compact mask counts its locked weights as kept too."""
    free, locked = source.frozen_words(scores.device)
    mask = bits.pack_sequence(bits.exceeds(scores, threshold))
    if compact:
        return mask, bits.popcount(mask) + bits.popcount(locked)
    resolved = bits.scatter(mask, free) | locked
    return resolved, bits.popcount(resolved)
