"""Words to weights: tiles of W words, [N, W], expanded to [N, 32 W] weights in registers.

**Two bits per weight.** A weight of ``signed_constant`` is the two bits (sign, keep). As the sign and the top exponent
bit of a float they are 2 * v, and as the two top bits of an int8 they are 64 * v:

    bits 15 and 14 of bfloat16, float16:  00 -> 0   01 -> 2    11 -> -2
    bits  7 and  6 of int8:               00 -> 0   01 -> 64   11 -> -64

A shift and an AND turn a word of such fields into two floats or four int8. The epilogue takes the factor out of the
sums (`fixed_point.finish`).

**Quad order.** The four int8 of one register are 8 bits apart in their word: quad s (0 to 7) of a word holds bits
s, s + 8, s + 16 and s + 24, which are k = 2 s, 2 s + 16, 2 s + 1 and 2 s + 17. The order of a sum is free, so the
digits of the other operand are stored in quad order (`fixed_point.to_digits`), and weights are never permuted.
"""

import triton
import triton.language as tl

from .assembly import shifted_left
from .words import SIGNED_CONSTANT, UNIFORM, VALUE, first_index, join4, one_of_four, philox, word_index


@triton.jit
def coded_words(keep, sign):
    """The two-bit fields (sign, keep) of words [N, W]: [N, W, 2], the fields of even bits and those of odd bits.

    The field of bit b is at bits b & ~1 and b | 1, with the sign in the upper one; the sign of a pruned weight is 0.
    Five instructions per word.
    """
    sign = sign & keep
    even = (sign << 1 & 0xAAAAAAAA) | (keep & 0x55555555)
    odd = (sign & 0xAAAAAAAA) | (keep >> 1 & 0x55555555)
    return tl.join(even, odd)


@triton.jit
def sign_floats(coded, dtype: tl.constexpr):
    """2 * v in bfloat16 or float16, in plain order of k. A shift and an AND give a pair (k, k + 1)."""
    f = tl.arange(0, 8)[None, None, :, None]
    pairs = shifted_left(coded[:, :, None, :], 14 - 2 * f) & 0xC000C000  # [N, W, 8, 2]
    low = pairs.to(tl.uint16).to(dtype, bitcast=True)
    high = (pairs >> 16).to(tl.uint16).to(dtype, bitcast=True)
    return tl.join(low, high).reshape([coded.shape[0], 32 * coded.shape[1]])


@triton.jit
def sign_floats_by_rows(coded, dtype: tl.constexpr):
    """2 * v in bfloat16 or float16, transposed: [N, W, 2] -> [32 W, N], where rows are neighbours in a register.

    The halves of two rows' words are combined first, so that a shift and an AND give two weights here too.
    """
    n: tl.constexpr = coded.shape[0]
    w: tl.constexpr = coded.shape[1]
    first, second = coded.reshape([n // 2, 2, w, 2]).permute(0, 2, 3, 1).split()  # [N / 2, W, 2] of each
    even = (first & 0xFFFF) | second << 16  # the even k of both rows
    odd = first >> 16 | (second & 0xFFFF0000)
    halves = tl.join(even, odd)[:, :, None, :, :]
    f = tl.arange(0, 8)[None, None, :, None, None]
    pairs = shifted_left(halves, 14 - 2 * f) & 0xC000C000  # [N / 2, W, 8, 2, 2]: k = 32 w + 4 f + 2 parity + odd
    pairs = pairs.reshape([n // 2, 32 * w])
    low = pairs.to(tl.uint16).to(dtype, bitcast=True)
    high = (pairs >> 16).to(tl.uint16).to(dtype, bitcast=True)
    return tl.join(low, high).permute(1, 0, 2).reshape([32 * w, n])


@triton.jit
def sign_quads(coded):
    """64 * v in int8, in quad order. A shift and an AND give four weights."""
    f = tl.arange(0, 4)[None, None, :, None]
    quads = shifted_left(coded[:, :, None, :], 6 - 2 * f) & 0xC0C0C0C0  # [N, W, 4, 2]
    return _bytes_of(quads.reshape([coded.shape[0], 8 * coded.shape[1]]))


@triton.jit
def sign_quads_by_rows(coded):
    """64 * v in int8, transposed: [N, W, 2] -> [32 W, N], where rows are neighbours in a register.

    The bytes of four rows' words are combined first, so that a shift and an AND give four weights here too.
    """
    n: tl.constexpr = coded.shape[0]
    w: tl.constexpr = coded.shape[1]
    rows = coded.reshape([n // 4, 2, 2, w, 2]).permute(0, 3, 4, 1, 2)  # [N / 4, W, 2, 2, 2]
    even, odd = rows.split()
    a, c = even.split()  # [N / 4, W, 2] of each row
    b, d = odd.split()
    # Byte j of a word holds fields 4 (j & 1) to 4 (j & 1) + 3 of half j >> 1; the upper half is the odd k.
    j = tl.arange(0, 2)[None, None, :, None, None] + 2 * tl.arange(0, 2)[None, None, None, None, :]
    at = (8 * j).to(tl.uint32)
    quad = (a[:, :, None, :, None] >> at & 0xFF) | (b[:, :, None, :, None] >> at & 0xFF) << 8
    quad |= (c[:, :, None, :, None] >> at & 0xFF) << 16 | (d[:, :, None, :, None] >> at & 0xFF) << 24
    f = tl.arange(0, 4)[None, None, None, :, None, None]
    quads = shifted_left(quad[:, :, :, None, :, :], 6 - 2 * f) & 0xC0C0C0C0  # [N / 4, W, 2, 4, 2, 2]
    weights = _bytes_of(quads.reshape([n // 4, 32 * w]))
    return weights.reshape([n // 4, 32 * w, 4]).permute(1, 0, 2).reshape([32 * w, n])


@triton.jit
def spread(words):
    """Each word repeated for each of its weights: [N, W] -> [N, 32 W]."""
    n: tl.constexpr = words.shape[0]
    w: tl.constexpr = words.shape[1]
    return tl.broadcast_to(words[:, :, None], [n, w, 32]).reshape([n, 32 * w])


@triton.jit
def bit_of(k):
    """The bit of weight k in its word."""
    return (k & 31) >> 1 | (k & 1) << 4


@triton.jit
def spread_bits(words):
    """The bits of words in plain order of k, int32."""
    shift = bit_of(tl.arange(0, 32 * words.shape[1]))[None, :].to(tl.uint32)
    return (spread(words) >> shift & 1).to(tl.int32)


@triton.jit
def _value_words(source, row, word):
    """The bytes of stream VALUE as words, twice [N, W, 4]: of k mod 32 < 16, and of the other k."""
    q = word_index(source, row, word)
    a, b, c, d = philox(source, VALUE, 2 * q)
    e, f, g, h = philox(source, VALUE, 2 * q + 1)
    return join4(a, b, c, d), join4(e, f, g, h)


@triton.jit
def _bytes_of(words):
    """The bytes of words [N, W], the lowest first: int8 [N, 4 W]."""
    a = words.to(tl.uint8)
    b = (words >> 8).to(tl.uint8)
    c = (words >> 16).to(tl.uint8)
    d = (words >> 24).to(tl.uint8)
    return join4(a, b, c, d).reshape([words.shape[0], 4 * words.shape[1]]).to(tl.int8, bitcast=True)


@triton.jit
def _byte_values(u, table, WEIGHT: tl.constexpr):
    """v of random bytes, for ``uniform`` or ``normal``; both int8. ``table`` points to T of the contract."""
    if WEIGHT == UNIFORM:
        return (u ^ -128) | 1
    else:
        return tl.load(table + (u.to(tl.int32) & 255))


@triton.jit
def byte_quads(source, row, word, keep, table, WEIGHT: tl.constexpr):
    """v * keep of ``uniform`` and ``normal`` in int8, in quad order: row [N], word [W], keep [N, W].

    Philox costs 2 * 45 / 32 = 2.8 instructions per weight, the rest about 12 for four weights.
    """
    n: tl.constexpr = keep.shape[0]
    w: tl.constexpr = keep.shape[1]
    low, high = _value_words(source, row, word)
    shift = 16 * tl.arange(0, 2)[None, None, None, :].to(tl.uint32)
    low = low[:, :, :, None] >> shift  # [N, W, 4, 2]: for quad s, k = 2 s and 2 s + 1 in the low half
    high = high[:, :, :, None] >> shift  # k = 2 s + 16 and 2 s + 17
    quads = (low & 0xFF) | (high & 0xFF) << 8 | (low & 0xFF00) << 8 | (high & 0xFF00) << 16
    values = _byte_values(_bytes_of(quads.reshape([n, 8 * w])), table, WEIGHT)
    s = tl.arange(0, 8)[None, None, :].to(tl.uint32)
    kept = (keep[:, :, None] >> s & 0x01010101) * 0xFF
    return values & _bytes_of(kept.reshape([n, 8 * w]))


@triton.jit
def integer_weight(source, row, word, sign, table, WEIGHT: tl.constexpr):
    """v, unmasked, in plain order of k, int8. ``sign`` [N, W] are the sign words of ``signed_constant``."""
    if WEIGHT == SIGNED_CONSTANT:
        return (1 - 2 * spread_bits(sign)).to(tl.int8)
    else:
        low, high = _value_words(source, row, word)
        words = tl.join(low, high).permute(0, 1, 3, 2).reshape([row.shape[0], 8 * word.shape[0]])
        return _byte_values(_bytes_of(words), table, WEIGHT)


@triton.jit
def byte_weight_from(source, row, k, table, WEIGHT: tl.constexpr):
    """v of the 32 weights from any k on, unmasked, in plain order: row [N] -> int8 [N, 32]; a call per four weights."""
    at = k // 4 + 8 * source.skipped + tl.arange(0, 8)
    shift = (8 * (k & 3)).to(tl.uint32)
    words = _value_word(source, row, at) >> shift | _value_word(source, row, at + 1) << 1 << (31 - shift)
    return _byte_values(_bytes_of(words), table, WEIGHT)


@triton.jit
def _value_word(source, row, at):
    """Words of stream VALUE, four weights each, one call per word: row [N], at [W] -> [N, W]."""
    a, b, c, d = philox(source, VALUE, 8 * first_index(source, row)[:, None] + (at >> 2)[None, :])
    return one_of_four(at & 3, a, b, c, d)
