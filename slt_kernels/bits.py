"""Words of 32 bits: how masks are packed, counted, and put in and out of bit order.

A word is 32 consecutive ``k`` of one row. Bit ``b`` of its low half belongs to the even ``k = 2b``, bit
``16 + b`` of its high half to the odd ``k = 2b + 1``: a pair ``(k, k + 1)`` then sits 16 bits apart, as two
16-bit floats sit in one 32-bit register. Words are held in int32 tensors; only their bits mean anything.
"""

from collections.abc import Callable

import torch
from torch import Tensor

WORD = 32


def words_for(count: int) -> int:
    """Words that hold ``count`` bits."""
    return (count + WORD - 1) // WORD


def unpack(words: Tensor) -> Tensor:
    """Int32 words ``[...]`` to bool bits ``[..., 32]``, lowest bit first."""
    shifts = torch.arange(WORD, dtype=torch.int32, device=words.device)
    return (words.unsqueeze(-1) >> shifts & 1).bool()


def pack(bits: Tensor) -> Tensor:
    """Bool bits ``[..., 32]``, lowest first, to int32 words ``[...]``."""
    shifts = torch.arange(WORD, dtype=torch.int32, device=bits.device)
    return (bits.int() << shifts).sum(-1, dtype=torch.int32)  # no two bits meet: the sum is an OR


def to_k_order(values: Tensor, fan: int) -> Tensor:
    """Values in bit order ``[rows, words, 32]`` to the plain order of ``k``: ``[rows, fan]``."""
    rows, words, _ = values.shape
    halves = values.view(rows, words, 2, WORD // 2)  # even k, odd k
    return halves.transpose(2, 3).reshape(rows, words * WORD)[:, :fan]


def to_bit_order(values: Tensor) -> Tensor:
    """Values in the order of ``k``, ``[rows, fan]``, to bit order ``[rows, words, 32]``, padded with zeros."""
    rows, fan = values.shape
    words = words_for(fan)
    padded = torch.nn.functional.pad(values, (0, words * WORD - fan))
    return padded.view(rows, words, WORD // 2, 2).transpose(2, 3).reshape(rows, words, WORD)


def popcount(words: Tensor) -> Tensor:
    """Set bits of all words together, an int64 scalar on their device."""
    pairs = words - (words >> 1 & 0x55555555)
    nibbles = (pairs & 0x33333333) + (pairs >> 2 & 0x33333333)
    octets = nibbles + (nibbles >> 4) & 0x0F0F0F0F
    return ((octets * 0x01010101) >> 24 & 0xFF).sum(dtype=torch.int64)


def pack_sequence(bits: Tensor) -> Tensor:
    """A compact mask: bool ``[n]`` to int32 ``[ceil(n / 32)]``, first bit lowest, padded with zeros."""
    words = words_for(bits.numel())
    return pack(torch.nn.functional.pad(bits, (0, words * WORD - bits.numel())).view(words, WORD))


def scatter(compact: Tensor, free: Tensor) -> Tensor:
    """Puts the bits of a compact mask at the set bits of ``free`` ``[rows, words]``, in their order."""
    at = unpack(free)
    at[at.clone()] = unpack(compact).flatten()[: int(at.sum())]
    return pack(at)


def gather(words: Tensor, free: Tensor) -> Tensor:
    """The inverse of `scatter`: the bits of ``words`` that stand at the set bits of ``free``, packed."""
    return pack_sequence(unpack(words)[unpack(free)])


# Floats by their bits: the order of magnitudes is that of integers. Comparisons of floats take a denormal number for 0
# where `torch.set_flush_denormal` is on, or was when a thread started.


def magnitudes(x: Tensor) -> Tensor:
    """The bits of ``|x|`` as integers, in their order: a denormal number is above 0, and NaN above infinity."""
    integers = x.detach().contiguous().view(_integer_of(x.dtype))
    return integers & torch.iinfo(integers.dtype).max


def exceeds(x: Tensor, threshold: Tensor) -> Tensor:
    """``|x| > threshold``, which no NaN fulfils, for one threshold of the dtype of ``x``."""
    size, limit, infinity = magnitudes(x), magnitudes(threshold).reshape(()), _infinity_of(x.dtype)
    limit = torch.where(is_negative(threshold).reshape(()), -1, limit)
    return (size > limit) & (size <= infinity) & (limit <= infinity)


def is_negative(x: Tensor) -> Tensor:
    """``x < 0``, which neither -0.0 nor a NaN is."""
    size = magnitudes(x)
    signed = x.detach().contiguous().view(size.dtype) < 0
    return signed & (size > 0) & (size <= _infinity_of(x.dtype))


DIGIT = 16  # bits that `find_rank` finds at a time


def find_rank(counts: Callable[[int, int], Tensor], rank: int, dtype: torch.dtype) -> Tensor:
    """The rank-th smallest magnitude of some floats, by the histograms that ``counts(prefix, shift)`` makes of them.

    The bits of a non-negative float, read as an integer, are in its order: they are found from the top.
    """
    integer = _integer_of(dtype)
    prefix = 0
    for shift in range(torch.iinfo(integer).bits - DIGIT, -1, -DIGIT):
        found = counts(prefix, shift)
        digit = int(torch.searchsorted(found.cumsum(0), rank))
        rank -= int(found[:digit].sum())
        prefix = prefix << DIGIT | digit
    return torch.tensor(prefix, dtype=integer, device=found.device).view(dtype)


def histogram(x: Tensor, prefix: int, shift: int) -> Tensor:
    """How often each value of the 16 bits of ``|x|`` from ``shift`` up follows ``prefix``: int64 ``[65536]``."""
    magnitude = magnitudes(x).flatten() >> shift
    return torch.bincount(magnitude[magnitude >> DIGIT == prefix] & (1 << DIGIT) - 1, minlength=1 << DIGIT)


def _integer_of(dtype: torch.dtype) -> torch.dtype:
    return {torch.float32: torch.int32, torch.float64: torch.int64}[dtype]


def _infinity_of(dtype: torch.dtype) -> int:
    return {torch.float32: 0x7F800000, torch.float64: 0x7FF0000000000000}[dtype]
