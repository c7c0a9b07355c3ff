"""The weight contract's words in Triton: Philox, sign words, frozen patterns, masks.

Everything random in this backend comes from this file and `weights`. They state `docs/contract.md` for tensors of
32-bit words (uint32); the oracle is `slt_kernels.source`. Shapes: N rows and W words of each. One Philox call of signs
is 128 weights of a row, so a tile of 128 weights of N rows is N calls, one per thread in the common case. Words are
combined as words, [N, 4], and expanded to weights last: a change of layout on the way to a tensor core then moves
words.
"""

from functools import lru_cache
from typing import NamedTuple

import triton
import triton.language as tl

from ...source import Source
from .assembly import PTX, has_few_operations, philox_rounds

SIGN: tl.constexpr = tl.constexpr(0)
FREEZE: tl.constexpr = tl.constexpr(1)
VALUE: tl.constexpr = tl.constexpr(2)

SIGNED_CONSTANT: tl.constexpr = tl.constexpr(0)
UNIFORM: tl.constexpr = tl.constexpr(1)
NORMAL: tl.constexpr = tl.constexpr(2)


class KernelSource(NamedTuple):
    """A `Source` as kernels take it: 32-bit integers, and calls counted from the one with the source's first word."""

    seed_low: int
    seed_high: int
    layer: int
    first_row: int
    row_calls: int
    first_call: int
    skipped: int  # words of the first call that come before the source's
    calls: int  # per row, that hold words of the source
    rows: int
    fan: int
    words: int
    prune_below: int
    lock_from: int

    @classmethod
    @lru_cache(maxsize=4096)
    def of(cls, source: Source) -> "KernelSource":
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
    def coded(cls, source: Source) -> "KernelSource":
        """The launch's argument, read by `decoded`: each number except the seed is the upper half of an int64.

        Triton specializes a kernel on whether an integer is 1, a multiple of 16, or fits in 32 bits. These all need
        64 bits (except -1) and end in 3, so few compiled kernels serve all sources. The seed's halves are left as they
        are: every Philox round uses them, and a network has one seed.
        """
        low, high, *others = cls.of(source)
        return cls(low, high, *((number << 32) + 2**31 + 3 for number in others))


def freeze_calls(source: Source) -> int:
    """Philox calls per word of a frozen pattern: two give bytes, one their upper four bits; 0 if nothing is frozen."""
    if (source.prune_below, source.lock_from) == (0, 256):
        return 0
    return 2 if source.prune_below % 16 or source.lock_from % 16 else 1


def full(source: Source) -> bool:
    """Whether rows are whole calls."""
    return source.first_word % 4 == 0 and source.fan % 128 == 0


def _signed(word: int) -> int:
    """The low 32 bits as an int32."""
    return ((word & 0xFFFFFFFF) ^ 0x80000000) - 0x80000000


@triton.jit
def _upper(number):
    return (tl.cast(number, tl.int64) + 0 >> 32).to(tl.int32)  # + 0: the interpreter keeps 2**31 to 2**32 in 32 bits


@triton.jit
def decoded(source):
    """The numbers of a `KernelSource.coded`, int32."""
    return KernelSource(
        tl.cast(source.seed_low, tl.int32),
        tl.cast(source.seed_high, tl.int32),
        _upper(source.layer),
        _upper(source.first_row),
        _upper(source.row_calls),
        _upper(source.first_call),
        _upper(source.skipped),
        _upper(source.calls),
        _upper(source.rows),
        _upper(source.fan),
        _upper(source.words),
        _upper(source.prune_below),
        _upper(source.lock_from),
    )


@triton.jit
def philox(source, stream: tl.constexpr, index):
    """``call(stream, index)``: four uint32 of the shape of ``index`` (int64).

    Ten rounds of two 32 x 32 -> 64 bit products and two three-input XORs are 40 instructions. The additions to the key
    are hoisted out of loops over calls. The rounds may be one operation: see `philox_rounds`.
    """
    k0 = source.seed_low.to(tl.uint32, bitcast=True)
    k1 = source.seed_high.to(tl.uint32, bitcast=True)
    c0 = index.to(tl.uint32)
    c1 = source.layer.to(tl.uint32, bitcast=True)
    c2 = tl.full((), stream, tl.uint32)
    c3 = (index >> 32).to(tl.uint32)
    if PTX and has_few_operations():
        keys = ()
        for _ in tl.static_range(10):
            keys += (k0, k1)
            k0 = k0 + 0x9E3779B9
            k1 = k1 + 0xBB67AE85
        return philox_rounds((c0, c1, c2, c3), keys)
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
def first_index(source, row):
    """The index of a row's first call, int64; its other calls follow. ``row`` counts from the source's first row."""
    return (row.to(tl.int64) + source.first_row) * source.row_calls + source.first_call


@triton.jit
def join4(a, b, c, d):
    """Four tensors [...] to one [..., 4]."""
    joined = tl.join(tl.join(a, c), tl.join(b, d))  # [..., 2, 2], in the order a, b, c, d
    return joined.reshape(a.shape + [4])


@triton.jit
def one_of_four(i, a, b, c, d):
    """``(a, b, c, d)[i]``: i [W], the others [N, W]."""
    i = i[None, :]
    return tl.where(i < 2, tl.where(i == 0, a, b), tl.where(i == 2, c, d))


@triton.jit
def sign_words(source, row, call):
    """The four sign words of a call: row [N] -> [N, 4]. A set bit means -1."""
    a, b, c, d = philox(source, SIGN, first_index(source, row) + call)
    return join4(a, b, c, d)


@triton.jit
def sign_words_at(source, row, word):
    """The sign words of arbitrary words, one call per word: row [N], word [W] -> [N, W]."""
    word = word + source.skipped
    a, b, c, d = philox(source, SIGN, first_index(source, row)[:, None] + (word >> 2)[None, :])
    return one_of_four(word & 3, a, b, c, d)


@triton.jit
def aligned(words, shift):
    """The word of 32 weights that starts at weight ``shift`` (0 to 31) of two neighbouring words: [N, 2] -> [N, 1]."""
    first, second = words.split()
    even = (first & 0xFFFF) | second << 16  # the even k of both
    odd = first >> 16 | (second & 0xFFFF0000)
    half = (shift >> 1).to(tl.uint32)
    if shift & 1:
        even, odd = odd, even >> 1
    return ((even >> half & 0xFFFF) | odd >> half << 16)[:, None]


@triton.jit
def take_word(words, index: tl.constexpr):
    """One word of a call's four: [N, 4] -> [N]."""
    return tl.sum(tl.where(tl.arange(0, 4)[None, :] == index, words, 0), axis=1)


@triton.jit
def take_words(words, index, W: tl.constexpr):
    """Words [W * index, W * index + W) of a call's four: [N, 4] -> [N, W]."""
    if W == 4:
        return words
    else:
        runs = words.reshape([words.shape[0], 4 // W, W])
        wanted = tl.arange(0, 4 // W)[None, :, None] == index
        return tl.sum(tl.where(wanted, runs, 0), axis=1)  # the wanted run, and zeros


@triton.jit
def of_each_word(values):
    """The values of each of a call's four words: [..., 4] -> four times [...]."""
    pairs = values.reshape(values.shape[:-1] + [2, 2])
    even, odd = pairs.split()
    a, c = even.split()
    b, d = odd.split()
    return a, b, c, d


@triton.jit
def frozen_words(source, row, word, CALLS: tl.constexpr):
    """The free and the locked weights of words: row [N], word [W] -> [N, W] and [N, W]. Padding is 0 in both.

    Two Philox calls per word give the eight bit planes of one byte per weight. A comparison with a threshold is one
    three-input logic operation per plane: (2 * 45 + 2 * 8 + 8) / 32 = 3.6 instructions per weight. CALLS is that of
    `freeze_calls`: thresholds that are multiples of 16 need the first call alone.
    """
    weights = tl.where((row < source.rows)[:, None], valid_bits(source, word)[None, :], 0)
    if CALLS == 0:
        return weights, tl.zeros_like(weights)
    q = word_index(source, row, word)
    p0, p1, p2, p3 = philox(source, FREEZE, 2 * q)
    if CALLS == 1:
        planes = (p3, p2, p1, p0)
    else:
        p4, p5, p6, p7 = philox(source, FREEZE, 2 * q + 1)
        planes = (p7, p6, p5, p4, p3, p2, p1, p0)
    pruned = _below(planes, source.prune_below)
    unlocked = _below(planes, source.lock_from)
    return unlocked & invert(pruned) & weights, invert(unlocked | pruned) & weights


@triton.jit
def word_index(source, row, word):
    """q of the contract, int64 [N, W]."""
    return 4 * first_index(source, row)[:, None] + (word + source.skipped)[None, :]


@triton.jit
def _below(planes, threshold):
    """The bits whose byte is below a threshold (0 to 256), given the byte's bit planes from the least significant one.

    Four planes are the upper half of the byte, and then the threshold is a multiple of 16.
    """
    always = -(threshold >> 8)  # all ones for 256, which is above every byte
    result = (tl.zeros_like(planes[0]).to(tl.int32, bitcast=True) + always).to(tl.uint32, bitcast=True)
    missing: tl.constexpr = 8 - len(planes)
    for i in tl.static_range(len(planes)):
        bit = (-(threshold >> (missing + i) & 1) | always).to(tl.uint32, bitcast=True)
        result = (result & invert(planes[i])) | (bit & (result | invert(planes[i])))
    return result


@triton.jit
def words_of(source, call, FULL: tl.constexpr = False):
    """The numbers of a call's four words, counted from the source's first; [4]. The first and the last call may have
    some outside the source, unless rows are whole calls (FULL, see `full`)."""
    if FULL:
        return 4 * call + tl.arange(0, 4)
    else:
        return 4 * call - source.skipped + tl.arange(0, 4)


@triton.jit
def valid_bits(source, word):
    """The bits of a word that are weights, k < fan: uint32 of the shape of ``word``. 0 outside the source."""
    left = tl.minimum(tl.maximum(source.fan - 32 * word, 0), 32)
    even = (1 << ((left + 1) >> 1)) - 1
    odd = (1 << (left >> 1)) - 1
    return tl.where(word >= 0, even | odd << 16, 0).to(tl.uint32, bitcast=True)


@triton.jit
def invert(words):
    """``~words``, which the interpreter does not support for uint32."""
    return words ^ 0xFFFFFFFF


@triton.jit
def popcount(words):
    """Set bits of each uint32, as int32."""
    pairs = words - (words >> 1 & 0x55555555)
    nibbles = (pairs & 0x33333333) + (pairs >> 2 & 0x33333333)
    octets = nibbles + (nibbles >> 4) & 0x0F0F0F0F
    return ((octets * 0x01010101) >> 24).to(tl.int32)


@triton.jit
def resolved_words(mask, source, row, word, FULL: tl.constexpr = False):
    """Words of a resolved mask: row [N], word [W] -> [N, W]. 0 outside the source, garbage in the padding.

    FULL: a row's words are a multiple of four, and the division by four shows that to the compiler. The thread that
    computes a call then loads its four words as 16 bytes, without a mask.
    """
    if FULL:
        at = row.to(tl.int64)[:, None] * (4 * (source.words // 4)) + word[None, :]
        return tl.load(mask + at).to(tl.uint32, bitcast=True)
    else:
        inside = (row < source.rows)[:, None] & ((word >= 0) & (word < source.words))[None, :]
        at = row.to(tl.int64)[:, None] * source.words + word[None, :]
        return tl.load(mask + at, mask=inside, other=0).to(tl.uint32, bitcast=True)


@triton.jit
def compact_words(mask, free, locked, start):
    """The resolved words [N, W] of a compact mask, and the offset of the next words' first free weight in it.

    ``start`` [N] is the offset of the first free weight of each row's words ``free`` [N, W].
    """
    counts = popcount(free)
    first = start[:, None] + (tl.cumsum(counts, axis=1) - counts)
    at, shift = first >> 5, (first & 31).to(tl.uint32)
    low = tl.load(mask + at, mask=counts > 0, other=0).to(tl.uint32, bitcast=True)
    # The next word is loaded only if the bits reach into it: the mask may end before it.
    high = tl.load(mask + at + 1, mask=(first & 31) + counts > 32, other=0).to(tl.uint32, bitcast=True)
    bits = low >> shift | high << 1 << (31 - shift)
    return deposit(bits, free) | locked, start + tl.sum(counts, axis=1)


@triton.jit
def deposit(bits, at):
    """The lowest bits of ``bits``, in order, at the set bits of ``at``, for each uint32: x86's pdep.

    Hacker's Delight 7-5: a bit moves up by the number of clear bits of ``at`` below its place, one power of two at a
    time. About 80 instructions per word, two or three per weight.
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
    """The bits of ``at`` that move down by 2**step, ``at`` after the move, and the clear bits left to count."""
    parity = left
    for i in tl.static_range(5):
        parity = parity ^ parity << (1 << i)
    moved = parity & at
    return moved, (at ^ moved) | moved >> (1 << step), left & invert(parity)
