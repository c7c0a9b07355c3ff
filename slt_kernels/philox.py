"""Philox4x32-10, the counter-based generator of all random bits of a network.

Salmon et al., "Parallel random numbers: as easy as 1, 2, 3" (SC'11). It is also the generator of cuRAND, PyTorch and
``triton.language.philox``. A call is a pure function of (seed, layer, stream, index), so any part of a network can be
generated alone, in any order, by any number of threads.
"""

import torch
from torch import Tensor

SIGN, FREEZE, VALUE, SCORE = range(4)  # streams

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_KEY_INCREMENTS = (0x9E3779B9, 0xBB67AE85)
_ROUNDS = 10
_LOW = 0xFFFFFFFF
_CHUNK = 1 << 15  # calls at a time, so that the temporaries stay in the L2 cache


def philox4x32(counter: tuple[Tensor, Tensor, Tensor, Tensor], key: tuple[int, int]) -> Tensor:
    """The generator: counters of four 32-bit words (int64) and a key of two, to words ``[..., 4]`` (int64)."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(_ROUNDS):
        # A product of two 32-bit words may wrap in int64, but all its 64 bits are correct.
        a = c0 * _MULTIPLIERS[0]
        b = c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (b >> 32 & _LOW) ^ c1 ^ k0, b & _LOW, (a >> 32 & _LOW) ^ c3 ^ k1, a & _LOW
        k0 = k0 + _KEY_INCREMENTS[0] & _LOW
        k1 = k1 + _KEY_INCREMENTS[1] & _LOW
    return torch.stack((c0, c1, c2, c3), dim=-1)


def call(seed: int, layer: int, stream: int, index: Tensor) -> Tensor:
    """``call(stream, index)`` of the weight contract, for a whole tensor of indices.

    Args:
        seed: 64 bits; a negative number stands for its two's complement.
        layer: 32 bits.
        stream: SIGN, FREEZE, VALUE or SCORE.
        index: int64, any shape.

    Returns:
        int32 ``[*index.shape, 4]``: the four words, in order.
    """
    key = (seed & _LOW, seed >> 32 & _LOW)
    words = torch.empty(index.numel(), 4, dtype=torch.int32, device=index.device)
    for part, out in zip(index.reshape(-1).split(_CHUNK), words.split(_CHUNK), strict=True):
        low, high = part & _LOW, part >> 32 & _LOW
        counter = (low, torch.full_like(low, layer), torch.full_like(low, stream), high)
        out.copy_(philox4x32(counter, key))
    return words.view(*index.shape, 4)
