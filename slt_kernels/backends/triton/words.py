"""The weight contract in Triton: what a seed means, for tiles of weights in registers.

Everything random in this backend comes from this file. It states `docs/contract.md` once more, for tensors of 32-bit
words (uint32); its oracle is `slt_kernels.source`. Shapes: N rows, and tiles of 128 weights of each, since one call of
signs is 128 weights of a row, so that a tile of N rows is N calls, one a thread in the common case. What is random is
made and combined as words, [N, 4], and expanded to weights last: a change of layout on the way to a tensor core then
moves words.

**Two bits, one weight.** A weight of ``signed_constant`` is the two bits (sign, keep). Where they are the sign and the
top exponent bit of a float they are 2 * v, and where they are the two top bits of an int8 they are 64 * v:

    bits 15 and 14 of bfloat16, float16:  00 -> 0   01 -> 2    11 -> -2
    bits  7 and  6 of int8:               00 -> 0   01 -> 64   11 -> -64

A word of such fields gives two floats, or four int8, for a shift and an AND. The factor is taken out of the sums.

**Quad order.** Four int8 of one register then stand 8 bits apart in their word: quad s (0 to 7) of a word holds bits
s, s + 8, s + 16 and s + 24, which are k = 2 s, 2 s + 16, 2 s + 1 and 2 s + 17. The order of a sum is free, so the
other operand is put in that order once (`digits.py`), and the weights never are.
"""

from functools import lru_cache
from typing import NamedTuple

import triton
import triton.language as tl

from ...source import Source

SIGN: tl.constexpr = tl.constexpr(0)
FREEZE: tl.constexpr = tl.constexpr(1)
VALUE: tl.constexpr = tl.constexpr(2)

SIGNED_CONSTANT: tl.constexpr = tl.constexpr(0)
UNIFORM: tl.constexpr = tl.constexpr(1)
NORMAL: tl.constexpr = tl.constexpr(2)


class Layer(NamedTuple):
    """A `Source` in 32-bit integers.

    The calls of a row are counted from the one that holds the source's first word, of which ``skipped`` words are not
    the source's; ``calls`` of them hold its words.
    """

    seed_low: int
    seed_high: int
    layer: int
    first_row: int
    row_calls: int
    first_call: int
    skipped: int
    calls: int
    rows: int
    fan: int
    words: int
    prune_below: int
    lock_from: int

    @classmethod
    @lru_cache(maxsize=4096)
    def of(cls, source: Source) -> "Layer":
        skipped = source.first_word % 4
        return cls(
            _signed(source.seed),
            _signed(source.seed >> 32),
            _signed(source.layer),
            source.first_row,
            source.row_calls,
            source.first_word // 4,
            skipped,
            (skipped + source.words + 3) // 4,
            source.rows,
            source.fan,
            source.words,
            source.prune_below,
            source.lock_from,
        )

    @classmethod
    @lru_cache(maxsize=4096)
    def coded(cls, source: Source) -> "Layer":
        """As kernels take it, and `decoded` reads it: but for the seed, a number is the upper half of one of 64 bits.

        Triton compiles anew where a number is 1 or a multiple of 16 or needs 64 bits, or no longer does. Here all of
        them need 64 bits (but -1) and end in 3: few compiled kernels serve all layers. A network has one seed, and
        its halves are used in each round.
        """
        low, high, *others = cls.of(source)
        return cls(low, high, *((number << 32) + 2**31 + 3 for number in others))


def full(source: Source) -> bool:
    """Whether rows are whole calls."""
    return source.first_word % 4 == 0 and source.fan % 128 == 0


def _signed(word: int) -> int:
    """The low 32 bits as an int32."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


@triton.jit
def _upper(number):
    return (tl.cast(number, tl.int64) + 0 >> 32).to(tl.int32)  # + 0: the interpreter has 2**31 to 2**32 in 32 bits


@triton.jit
def decoded(layer):
    """The numbers of a `Layer.coded`, int32."""
    return Layer(
        tl.cast(layer.seed_low, tl.int32),
        tl.cast(layer.seed_high, tl.int32),
        _upper(layer.layer),
        _upper(layer.first_row),
        _upper(layer.row_calls),
        _upper(layer.first_call),
        _upper(layer.skipped),
        _upper(layer.calls),
        _upper(layer.rows),
        _upper(layer.fan),
        _upper(layer.words),
        _upper(layer.prune_below),
        _upper(layer.lock_from),
    )


# Words


@triton.jit
def philox(layer, stream: tl.constexpr, index):
    """``call(stream, index)``: four uint32 of the shape of ``index`` (int64).

    Ten rounds of two 32 x 32 -> 64 bit products and two three-input XORs: 40 instructions, and the additions to the
    key, which leave any loop over calls.
    """
    k0 = layer.seed_low.to(tl.uint32, bitcast=True)
    k1 = layer.seed_high.to(tl.uint32, bitcast=True)
    c0 = index.to(tl.uint32)
    c1 = layer.layer.to(tl.uint32, bitcast=True)
    c2 = tl.full((), stream, tl.uint32)
    c3 = (index >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c1 = b.to(tl.uint32)
        c3 = a.to(tl.uint32)
        k0 = k0 + 0x9E3779B9
        k1 = k1 + 0xBB67AE85
    return c0, c1, c2, c3


@triton.jit
def first_index(layer, row):
    """The index of a row's first call, int64; the next ones follow it. ``row`` counts from the source's first."""
    return (row.to(tl.int64) + layer.first_row) * layer.row_calls + layer.first_call


@triton.jit
def join4(a, b, c, d):
    """Four tensors [...] to one [..., 4]."""
    joined = tl.join(tl.join(a, c), tl.join(b, d))  # [..., 2, 2], in the order a, b, c, d
    return joined.reshape(a.shape + [4])


@triton.jit
def sign_words(layer, row, call):
    """The four sign words of a call: row [N] -> [N, 4]. A set bit is a -1."""
    a, b, c, d = philox(layer, SIGN, first_index(layer, row) + call)
    return join4(a, b, c, d)


@triton.jit
def sign_words_at(layer, row, word):
    """The sign words of any words, a call each: row [N], word [W] -> [N, W]."""
    word = word + layer.skipped
    a, b, c, d = philox(layer, SIGN, first_index(layer, row)[:, None] + (word >> 2)[None, :])
    return _one_of(word & 3, a, b, c, d)


@triton.jit
def aligned(words, shift):
    """The 32 weights from number ``shift`` (0 to 31) on of two neighbouring words, as a word: [N, 2] -> [N, 1]."""
    first, second = words.split()
    even = (first & 0xFFFF) | second << 16  # the even k of both
    odd = first >> 16 | (second & 0xFFFF0000)
    half = (shift >> 1).to(tl.uint32)
    if shift & 1:
        even, odd = odd, even >> 1
    return ((even >> half & 0xFFFF) | odd >> half << 16)[:, None]


@triton.jit
def part_of(words, part, W: tl.constexpr):
    """W of a call's four words, from number W * part on: [N, 4] -> [N, W]."""
    if W == 4:
        return words
    else:
        parts = words.reshape([words.shape[0], 4 // W, W])
        wanted = tl.arange(0, 4 // W)[None, :, None] == part
        return tl.sum(tl.where(wanted, parts, 0), axis=1)  # one of them and zeros


@triton.jit
def frozen_words(layer, row, word):
    """The free and the locked weights of words: row [N], word [W] -> [N, W] and [N, W]. Padding is 0 in both.

    Two calls of Philox a word give eight bit planes of a byte a weight, and a comparison with a threshold is one
    three-input logic operation a plane: (2 * 45 + 2 * 8 + 8) / 32 = 3.6 instructions a weight.
    """
    q = _word_index(layer, row, word)
    p0, p1, p2, p3 = philox(layer, FREEZE, 2 * q)
    p4, p5, p6, p7 = philox(layer, FREEZE, 2 * q + 1)
    planes = (p7, p6, p5, p4, p3, p2, p1, p0)
    pruned = _below(planes, layer.prune_below)
    unlocked = _below(planes, layer.lock_from)
    weights = tl.where((row < layer.rows)[:, None], valid_bits(layer, word)[None, :], 0)
    return unlocked & invert(pruned) & weights, invert(unlocked | pruned) & weights


@triton.jit
def _word_index(layer, row, word):
    """q of the contract, int64 [N, W]."""
    return 4 * first_index(layer, row)[:, None] + (word + layer.skipped)[None, :]


@triton.jit
def _below(planes, threshold):
    """Where the byte of eight bit planes, the least significant first, is under a threshold from 0 to 256."""
    always = -(threshold >> 8)  # all ones for 256, under which every byte is
    result = (tl.zeros_like(planes[0]).to(tl.int32, bitcast=True) + always).to(tl.uint32, bitcast=True)
    for i in tl.static_range(8):
        bit = (-(threshold >> i & 1) | always).to(tl.uint32, bitcast=True)
        result = (result & invert(planes[i])) | (bit & (result | invert(planes[i])))
    return result


@triton.jit
def words_of(layer, call, FULL: tl.constexpr = False):
    """The four words of a call, counted from the source's first; [4], and in the first and last call some outside.

    FULL: rows are whole calls (`full`), so none is outside.
    """
    if FULL:
        return 4 * call + tl.arange(0, 4)
    else:
        return 4 * call - layer.skipped + tl.arange(0, 4)


@triton.jit
def valid_bits(layer, word):
    """The bits of a word that are weights: those of k < fan, uint32 of the shape of ``word``. 0 outside the source."""
    left = tl.minimum(tl.maximum(layer.fan - 32 * word, 0), 32)
    even = (1 << ((left + 1) >> 1)) - 1
    odd = (1 << (left >> 1)) - 1
    return tl.where(word >= 0, even | odd << 16, 0).to(tl.uint32, bitcast=True)


@triton.jit
def invert(words):
    """``~words``, which the interpreter does not take for uint32."""
    return words ^ 0xFFFFFFFF


@triton.jit
def popcount(words):
    """Set bits of each uint32, as int32."""
    pairs = words - (words >> 1 & 0x55555555)
    nibbles = (pairs & 0x33333333) + (pairs >> 2 & 0x33333333)
    octets = nibbles + (nibbles >> 4) & 0x0F0F0F0F
    return ((octets * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def resolved_words(mask, layer, row, word, FULL: tl.constexpr = False):
    """Words of a resolved mask: row [N], word [W] -> [N, W]; 0 where there are none, garbage in the padding.

    FULL: a row's words are a multiple of four (which the division tells the compiler), so the four of a call are one
    16-byte load of the thread that makes the call, and none needs a mask.
    """
    if FULL:
        at = row.to(tl.int64)[:, None] * (4 * (layer.words // 4)) + word[None, :]
        return tl.load(mask + at).to(tl.uint32, bitcast=True)
    else:
        inside = (row < layer.rows)[:, None] & ((word >= 0) & (word < layer.words))[None, :]
        at = row.to(tl.int64)[:, None] * layer.words + word[None, :]
        return tl.load(mask + at, mask=inside, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def compact_words(mask, free, locked, start):
    """The resolved words [N, W] of a compact mask, and where the next words' free weights start in it.

    ``start`` [N] is the number of the first free weight of each row's words ``free`` [N, W].
    """
    counts = popcount(free)
    first = start[:, None] + (tl.cumsum(counts, axis=1) - counts)
    at, shift = first >> 5, (first & 31).to(tl.uint32)
    low = tl.load(mask + at, mask=counts > 0, other=0).to(tl.uint32, bitcast=True)
    # The next word only where the bits reach into it: the mask may end before it.
    high = tl.load(mask + at + 1, mask=(first & 31) + counts > 32, other=0).to(tl.uint32, bitcast=True)
    bits = low >> shift | high << 1 << (31 - shift)
    return deposit(bits, free) | locked, start + tl.sum(counts, axis=1)


@triton.jit
def deposit(bits, at):
    """The lowest bits of ``bits``, in order, at the set bits of ``at`` (x86's pdep), for each uint32.

    Hacker's Delight 7-5: where a bit of ``at`` has n clear ones below it, its bit moves up by n, a power of two at a
    time. About 80 instructions, two or three a weight.
    """
    left = invert(at) << 1
    m1, rest, left = _moves(at, left, 0)
    m2, rest, left = _moves(rest, left, 1)
    m4, rest, left = _moves(rest, left, 2)
    m8, rest, left = _moves(rest, left, 3)
    m16, rest, left = _moves(rest, left, 4)
    bits = (bits & invert(m16)) | (bits << 16 & m16)
    bits = (bits & invert(m8)) | (bits << 8 & m8)
    bits = (bits & invert(m4)) | (bits << 4 & m4)
    bits = (bits & invert(m2)) | (bits << 2 & m2)
    bits = (bits & invert(m1)) | (bits << 1 & m1)
    return bits & at


@triton.jit
def _moves(at, left, step: tl.constexpr):
    """Which bits of ``at`` move down by 2**step, ``at`` with them moved, and what is left to count."""
    parity = left
    for i in tl.static_range(5):
        parity = parity ^ parity << (1 << i)
    moved = parity & at
    return moved, (at ^ moved) | moved >> (1 << step), left & invert(parity)


# Words to weights. For a tile of W words, [N, W], the weights are [N, 32 W].


@triton.jit
def coded_words(keep, sign):
    """The two-bit fields (sign, keep) of words [N, W]: [N, W, 2], the fields of even bits and those of odd bits.

    Five instructions a word. The field of bit b stands at bits b & ~1 and b | 1, its sign above; the sign is 0 where
    nothing is kept.
    """
    sign = sign & keep
    even = (sign << 1 & 0xAAAAAAAA) | (keep & 0x55555555)
    odd = (sign & 0xAAAAAAAA) | (keep >> 1 & 0x55555555)
    return tl.join(even, odd)


@triton.jit
def sign_floats(coded, dtype: tl.constexpr):
    """2 * v in bfloat16 or float16, in plain order of k. A shift and an AND are a pair (k, k + 1)."""
    f = tl.arange(0, 8)[None, None, :, None]
    pairs = (coded[:, :, None, :] << (14 - 2 * f).to(tl.uint32)) & 0xC000C000  # [N, W, 8, 2]
    low = pairs.to(tl.uint16).to(dtype, bitcast=True)
    high = (pairs >> 16).to(tl.uint16).to(dtype, bitcast=True)
    return tl.join(low, high).reshape([coded.shape[0], 32 * coded.shape[1]])


@triton.jit
def sign_floats_by_rows(coded, dtype: tl.constexpr):
    """2 * v in bfloat16 or float16, transposed: [N, W, 2] -> [32 W, N], where neighbours are rows.

    Halves of the words of two rows are put together first; then a shift and an AND are two weights here too.
    """
    n: tl.constexpr = coded.shape[0]
    w: tl.constexpr = coded.shape[1]
    first, second = coded.reshape([n // 2, 2, w, 2]).permute(0, 2, 3, 1).split()  # [N / 2, W, 2] of each
    even = (first & 0xFFFF) | second << 16  # the even k of both rows
    odd = first >> 16 | (second & 0xFFFF0000)
    halves = tl.join(even, odd)[:, :, None, :, :]
    f = tl.arange(0, 8)[None, None, :, None, None]
    pairs = (halves << (14 - 2 * f).to(tl.uint32)) & 0xC000C000  # [N / 2, W, 8, 2, 2]: k = 32 w + 4 f + 2 parity + odd
    pairs = pairs.reshape([n // 2, 32 * w])
    low = pairs.to(tl.uint16).to(dtype, bitcast=True)
    high = (pairs >> 16).to(tl.uint16).to(dtype, bitcast=True)
    return tl.join(low, high).permute(1, 0, 2).reshape([32 * w, n])


@triton.jit
def sign_quads(coded):
    """64 * v in int8, in quad order. A shift and an AND are four weights."""
    f = tl.arange(0, 4)[None, None, :, None]
    quads = (coded[:, :, None, :] << (6 - 2 * f).to(tl.uint32)) & 0xC0C0C0C0  # [N, W, 4, 2]
    return _bytes_of(quads.reshape([coded.shape[0], 8 * coded.shape[1]]))


@triton.jit
def sign_quads_by_rows(coded):
    """64 * v in int8, transposed: [N, W, 2] -> [32 W, N], where neighbours are rows.

    Bytes of the words of four rows are put together first; then a shift and an AND are four weights here too.
    """
    n: tl.constexpr = coded.shape[0]
    w: tl.constexpr = coded.shape[1]
    rows = coded.reshape([n // 4, 2, 2, w, 2]).permute(0, 3, 4, 1, 2)  # [N / 4, W, 2, 2, 2]
    even, odd = rows.split()
    a, c = even.split()  # [N / 4, W, 2] of each row
    b, d = odd.split()
    # Byte j of a word is half j >> 1 (the odd k), and there the fields from 4 (j & 1) on.
    j = tl.arange(0, 2)[None, None, :, None, None] + 2 * tl.arange(0, 2)[None, None, None, None, :]
    at = (8 * j).to(tl.uint32)
    quad = (a[:, :, None, :, None] >> at & 0xFF) | (b[:, :, None, :, None] >> at & 0xFF) << 8
    quad |= (c[:, :, None, :, None] >> at & 0xFF) << 16 | (d[:, :, None, :, None] >> at & 0xFF) << 24
    f = tl.arange(0, 4)[None, None, None, :, None, None]
    quads = (quad[:, :, :, None, :, :] << (6 - 2 * f).to(tl.uint32)) & 0xC0C0C0C0  # [N / 4, W, 2, 4, 2, 2]
    weights = _bytes_of(quads.reshape([n // 4, 32 * w]))
    return weights.reshape([n // 4, 32 * w, 4]).permute(1, 0, 2).reshape([32 * w, n])


@triton.jit
def spread(words):
    """Each word once for each of its weights: [N, W] -> [N, 32 W]."""
    n: tl.constexpr = words.shape[0]
    w: tl.constexpr = words.shape[1]
    return tl.broadcast_to(words[:, :, None], [n, w, 32]).reshape([n, 32 * w])


@triton.jit
def bit_of(k):
    """The bit of its word that a weight is."""
    return (k & 31) >> 1 | (k & 1) << 4


@triton.jit
def spread_bits(words):
    """The bits of words in plain order of k, int32."""
    shift = bit_of(tl.arange(0, 32 * words.shape[1]))[None, :].to(tl.uint32)
    return (spread(words) >> shift & 1).to(tl.int32)


@triton.jit
def _value_words(layer, row, word):
    """The bytes of VALUE as words: two of [N, W, 4], those of k mod 32 < 16 and those of the others."""
    q = _word_index(layer, row, word)
    a, b, c, d = philox(layer, VALUE, 2 * q)
    e, f, g, h = philox(layer, VALUE, 2 * q + 1)
    return join4(a, b, c, d), join4(e, f, g, h)


@triton.jit
def _bytes_of(words):
    """Words [N, W] to their bytes, int8 [N, 4 W], the lowest first."""
    a = words.to(tl.uint8)
    b = (words >> 8).to(tl.uint8)
    c = (words >> 16).to(tl.uint8)
    d = (words >> 24).to(tl.uint8)
    return join4(a, b, c, d).reshape([words.shape[0], 4 * words.shape[1]]).to(tl.int8, bitcast=True)


@triton.jit
def _byte_values(u, table, WEIGHT: tl.constexpr):
    """v of the bytes of ``uniform`` or ``normal``, both int8; ``table`` points to T."""
    if WEIGHT == UNIFORM:
        return (u ^ -128) | 1
    else:
        return tl.load(table + (u.to(tl.int32) & 255))


@triton.jit
def byte_quads(layer, row, word, keep, table, WEIGHT: tl.constexpr):
    """v * keep of ``uniform`` and ``normal`` in int8, in quad order: row [N], word [W], keep [N, W].

    Philox is 2 * 45 / 32 = 2.8 instructions a weight, what follows about 12 for four.
    """
    n: tl.constexpr = keep.shape[0]
    w: tl.constexpr = keep.shape[1]
    low, high = _value_words(layer, row, word)
    shift = 16 * tl.arange(0, 2)[None, None, None, :].to(tl.uint32)
    low = low[:, :, :, None] >> shift  # [N, W, 4, 2]: for quad s, k = 2 s and 2 s + 1 in the low half
    high = high[:, :, :, None] >> shift  # k = 2 s + 16 and 2 s + 17
    quads = (low & 0xFF) | (high & 0xFF) << 8 | (low & 0xFF00) << 8 | (high & 0xFF00) << 16
    values = _byte_values(_bytes_of(quads.reshape([n, 8 * w])), table, WEIGHT)
    s = tl.arange(0, 8)[None, None, :].to(tl.uint32)
    kept = (keep[:, :, None] >> s & 0x01010101) * 0xFF
    return values & _bytes_of(kept.reshape([n, 8 * w]))


@triton.jit
def integer_weight(layer, row, word, sign, table, WEIGHT: tl.constexpr):
    """v, unmasked, in plain order, int8. ``sign`` [N, W] are the sign words, where the weights are signs."""
    if WEIGHT == SIGNED_CONSTANT:
        return (1 - 2 * spread_bits(sign)).to(tl.int8)
    else:
        low, high = _value_words(layer, row, word)
        words = tl.join(low, high).permute(0, 1, 3, 2).reshape([row.shape[0], 8 * word.shape[0]])
        return _byte_values(_bytes_of(words), table, WEIGHT)


@triton.jit
def byte_weight_from(layer, row, k, table, WEIGHT: tl.constexpr):
    """v of 32 weights from any k on, unmasked, in plain order: row [N] -> int8 [N, 32]. A call is made for four."""
    at = k // 4 + 8 * layer.skipped + tl.arange(0, 8)
    shift = (8 * (k & 3)).to(tl.uint32)
    words = _value_word(layer, row, at) >> shift | _value_word(layer, row, at + 1) << 1 << (31 - shift)
    return _byte_values(_bytes_of(words), table, WEIGHT)


@triton.jit
def _value_word(layer, row, at):
    """The words of VALUE, each of four weights, a call each: row [N], at [W] -> [N, W]."""
    a, b, c, d = philox(layer, VALUE, 8 * first_index(layer, row)[:, None] + (at >> 2)[None, :])
    return _one_of(at & 3, a, b, c, d)


@triton.jit
def _one_of(i, a, b, c, d):
    """i [W], the others [N, W]."""
    i = i[None, :]
    return tl.where(i < 2, tl.where(i == 0, a, b), tl.where(i == 2, c, d))
