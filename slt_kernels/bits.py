"""Words of 32 bits: packing, counting and bit order of masks.

A word is 32 consecutive ``k`` of one row. Bit ``b`` of its low half belongs to the even ``k = 2b``, bit ``16 + b`` of
its high half to the odd ``k = 2b + 1``. So the pair ``(k, k + 1)`` is 16 bits apart, as two 16-bit floats in one 32-bit
register are. Words are stored in int32 tensors, whose sign has no meaning.
"""

from collections.abc import Callable

import torch
from torch import Tensor

WORD = 32


def words_for(count: int) -> int:
    """Number of words that hold ``count`` bits."""
    return (count + WORD - 1) // WORD


def unpack(words: Tensor) -> Tensor:
    """Unpacks int32 words ``[...]`` to bool bits ``[..., 32]``, lowest bit first."""
    shifts = torch.arange(WORD, dtype=torch.int32, device=words.device)
    return (words.unsqueeze(-1) >> shifts & 1).bool()


def pack(bits: Tensor) -> Tensor:
    """Packs bool bits ``[..., 32]``, lowest bit first, to int32 words ``[...]``."""
    shifts = torch.arange(WORD, dtype=torch.int32, device=bits.device)
    return (bits.int() << shifts).sum(-1, dtype=torch.int32)  # bits do not overlap, so the sum is an OR


def to_k_order(values: Tensor, fan: int) -> Tensor:
    """Reorders values from bit order ``[rows, words, 32]`` to ``k`` order ``[rows, fan]``."""
    rows, words, _ = values.shape
    halves = values.view(rows, words, 2, WORD // 2)  # even k, odd k
    return halves.transpose(2, 3).reshape(rows, words * WORD)[:, :fan]


def to_bit_order(values: Tensor) -> Tensor:
    """Reorders values from ``k`` order ``[rows, fan]`` to bit order ``[rows, words, 32]``, padded with zeros."""
    rows, fan = values.shape
    words = words_for(fan)
    padded = torch.nn.functional.pad(values, (0, words * WORD - fan))
    return padded.view(rows, words, WORD // 2, 2).transpose(2, 3).reshape(rows, words, WORD)


def popcount(words: Tensor) -> Tensor:
    """Number of set bits in all words, an int64 scalar on their device."""
    pairs = words - (words >> 1 & 0x55555555)
    nibbles = (pairs & 0x33333333) + (pairs >> 2 & 0x33333333)
    octets = nibbles + (nibbles >> 4) & 0x0F0F0F0F
    return ((octets * 0x01010101) >> 24 & 0xFF).sum(dtype=torch.int64)


def pack_sequence(bits: Tensor) -> Tensor:
    """Packs a compact mask: bool ``[n]`` to int32 ``[ceil(n / 32)]``, first bit lowest, padded with zeros."""
    words = words_for(bits.numel())
    return pack(torch.nn.functional.pad(bits, (0, words * WORD - bits.numel())).view(words, WORD))


def scatter(compact: Tensor, free: Tensor) -> Tensor:
    """Moves the bits of a compact mask, in order, to the set bits of ``free`` ``[rows, words]``."""
    at = unpack(free)
    at[at.clone()] = unpack(compact).flatten()[: int(at.sum())]
    return pack(at)


def gather(words: Tensor, free: Tensor) -> Tensor:
    """Packs the bits of ``words`` at the set bits of ``free``: the inverse of `scatter`."""
    return pack_sequence(unpack(words)[unpack(free)])


# Magnitudes are compared by their bits, which have the same order as integers. Float comparisons treat denormal numbers
# as 0 under `torch.set_flush_denormal(True)`, also in threads that were started under it.


def magnitudes(x: Tensor) -> Tensor:
    """Bits of ``|x|`` as integers. They have the order of ``|x|``: denormals are above 0, NaN is above infinity."""
    integers = x.detach().contiguous().view(_integer_of(x.dtype))
    return integers & torch.iinfo(integers.dtype).max


def exceeds(x: Tensor, threshold: Tensor) -> Tensor:
    """``|x| > threshold``, false for NaN. ``threshold`` is one element of the dtype of ``x``."""
    size, limit, infinity = magnitudes(x), magnitudes(threshold).reshape(()), _infinity_of(x.dtype)
    limit = torch.where(is_negative(threshold).reshape(()), -1, limit)
    return (size > limit) & (size <= infinity) & (limit <= infinity)


def is_negative(x: Tensor) -> Tensor:
    """``x < 0``, false for -0.0 and NaN."""
    size = magnitudes(x)
    signed = x.detach().contiguous().view(size.dtype) < 0
    return signed & (size > 0) & (size <= _infinity_of(x.dtype))


RADIX_BITS = 16  # that `find_rank` finds per histogram


def find_rank(counts: Callable[[int, int], Tensor], rank: int, dtype: torch.dtype) -> Tensor:
    """The rank-th smallest magnitude of floats that are given by their histograms, ``counts(prefix, shift)``.

    It is a radix selection: the bits of the result are found from the highest down.

    Args:
        counts: see `histogram`.
        rank: from 1.
        dtype: of the floats.
    """
    integer = _integer_of(dtype)
    prefix = 0
    for shift in range(torch.iinfo(integer).bits - RADIX_BITS, -1, -RADIX_BITS):
        found = counts(prefix, shift)
        bucket = int(torch.searchsorted(found.cumsum(0), rank))
        rank -= int(found[:bucket].sum())
        prefix = prefix << RADIX_BITS | bucket
    return torch.tensor(prefix, dtype=integer, device=found.device).view(dtype)


def histogram(x: Tensor, prefix: int, shift: int) -> Tensor:
    """Counts the 16 bits of ``|x|`` at ``shift``, for elements whose higher bits are ``prefix``: int64 ``[65536]``."""
    magnitude = magnitudes(x).flatten() >> shift
    bins = 1 << RADIX_BITS
    return torch.bincount(magnitude[magnitude >> RADIX_BITS == prefix] & bins - 1, minlength=bins)


def _integer_of(dtype: torch.dtype) -> torch.dtype:
    return {torch.float32: torch.int32, torch.float64: torch.int64}[dtype]


def _infinity_of(dtype: torch.dtype) -> int:
    return {torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}[dtype]
