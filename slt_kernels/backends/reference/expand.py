"""A resolved mask from a compact one."""

from torch import Tensor

from ... import bits
from ...source import Source
from .oracle import oracle


@oracle
def expand(mask: Tensor, source: Source) -> Tensor:
    free, locked = source.frozen_words(mask.device)
    return bits.scatter(mask, free) | locked
