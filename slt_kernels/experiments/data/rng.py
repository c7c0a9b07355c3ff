"""Random numbers as a pure function of (seed, epoch, index), so that a search can resume at any step.

Philox in streams that networks do not use: the same numbers on every device, in every process, in any order.
"""

import torch
from torch import Tensor

from ... import philox
from ..._text import shown

_ORDER, _AUGMENT, RAND_AUGMENT = 4, 5, 6  # streams; the contract has 0 to 3
_LOW = 0xFFFFFFFF


def order(count: int, seed: int, epoch: int = 0) -> Tensor:
    """Random permutation of ``count`` examples, int64 ``[count]``."""
    words = philox.call(seed, epoch, _ORDER, torch.arange((count + 1) // 2))
    return words.view(-1).view(torch.int64)[:count].argsort(stable=True)


def split(count: int, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Two disjoint, sorted sets of indices; the second has ``round(fraction * count)``.

    Raises:
        ValueError: a fraction outside (0, 1), or one that leaves a part empty.
    """
    second = round(fraction * count) if 0 < fraction < 1 else 0
    if not 0 < second < count:
        raise ValueError(
            f"validation={shown(fraction)}: expected a fraction in (0, 1) that leaves no part of {count} examples empty"
        )
    shuffled = order(count, seed)
    return shuffled[second:].sort().values, shuffled[:second].sort().values


def draws(indices: Tensor, count: int, seed: int, epoch: int, stream: int = _AUGMENT) -> Tensor:
    """``count`` numbers in [0, 1) per example, float64 ``[*indices.shape, count]``; other ones in another stream."""
    calls = (count + 3) // 4
    each = indices.unsqueeze(-1) * calls + torch.arange(calls, device=indices.device)
    words = philox.call(seed, epoch, stream, each).flatten(-2)[..., :count]
    return (words.to(torch.int64) & _LOW).double() / 2**32
