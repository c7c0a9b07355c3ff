"""Fixed point: inputs as int8 digits, and exact sums of them back to floats.

`docs/contract.md`, section 7: the values of a vector (a row of a matrix, a sample of a batch of images) are rounded to
integers X of 8 D - 1 bits that share a scale. X is written in D balanced base-256 digits. Each digit has its own int8
product with int32 sums, and their exact total is rounded once. Every tile and every split of k gives the same bits.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..arguments import digit_count
from .launch import Launch, blocks, prepared
from .words import SIGNED_CONSTANT

SUMMANDS = 1024 * 128
"""The most products of an int8 weight and a digit in an int32 sum: 127 * 128 * SUMMANDS < 2**31."""

_LENGTH_PER_PROGRAM = 8192
"""The longest vector that one program converts whole."""


class Digits(NamedTuple):
    """Vectors in fixed point: ``x[b, i] = unit[b] * sum of 256**d * digits[d, b, i]``."""

    digits: Tensor  # int8 [D, B, padded length]
    unit: Tensor  # float64 [B], a power of two; NaN for a vector with a value that is not finite


def to_digits(x: Tensor, quad_order: bool, multiple: int) -> Digits:
    """Rounds vectors ``x`` [B, length], contiguous, to fixed point.

    Each vector is padded with zeros to a multiple of ``multiple``. ``quad_order`` permutes every
    32 values, see `weights`.
    """
    count, length = x.shape
    d = digit_count(x)
    padded = multiple * blocks(length, multiple)
    digits = torch.empty(d, count, padded, dtype=torch.int8, device=x.device)
    unit = torch.empty(count, dtype=torch.float64, device=x.device)
    largest = x if padded <= _LENGTH_PER_PROGRAM else torch.linalg.vector_norm(x, torch.inf, dim=1)
    _launch(count, length, padded, x.dtype, quad_order, d, x.device)(x, largest, digits, unit)
    return Digits(digits, unit)


@prepared
def _launch(
    count: int, length: int, padded: int, dtype: torch.dtype, quad_order: bool, d: int, device: torch.device
) -> Launch:
    alone = padded <= _LENGTH_PER_PROGRAM
    block = max(128, triton.next_power_of_2(padded)) if alone else 1024
    meta = {"QUAD_ORDER": quad_order, "D": d, "ALONE": alone, "BLOCK": block, "num_warps": 16 if block > 1024 else 4}
    numbers = (count * padded, length, padded)
    return Launch(to_digits_kernel, count * blocks(padded, block), device, *numbers, **meta)


@triton.jit(do_not_specialize=["plane", "length", "padded"])
def to_digits_kernel(
    x,
    largest,
    digits,
    unit,
    plane: "i64",
    length: "i64",
    padded: "i64",
    QUAD_ORDER: tl.constexpr,
    D: tl.constexpr,
    ALONE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program converts BLOCK values of one vector. The first program of a vector writes its unit.

    ALONE: the block is the whole vector, and its largest magnitude is computed here.
    """
    blocks_per_vector = tl.cdiv(padded, BLOCK)
    b = tl.program_id(0) // blocks_per_vector
    block = tl.program_id(0) % blocks_per_vector
    at = block * BLOCK + tl.arange(0, BLOCK)
    within = at & 31
    # Quad order: byte i of quad s is bit s + 8 i of its word, and k is the weight of that bit.
    bit = within >> 2 | (within & 3) << 3
    k = at - within + ((bit & 15) << 1 | bit >> 4) if QUAD_ORDER else at
    value = tl.load(x + b * length + k, mask=k < length, other=0).to(tl.float64)

    if ALONE:  # the bits of magnitudes, as integers, are in the order of the magnitudes; infinity and NaN are largest
        magnitude = value.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
        m = tl.max(magnitude, axis=0).to(tl.float64, bitcast=True)
    else:
        m = tl.load(largest + b).to(tl.float64)  # a denormal float32 is a normal double: its exponent is in its bits
    finite = m < float("inf")  # false for NaN
    m = tl.where(finite, m, 0.0)
    e = tl.where(m > 0, ((m.to(tl.int64, bitcast=True) >> 52) - 1022).to(tl.int32), 0)  # 2^(e-1) <= m < 2^e
    shift = 8 * D - 1 - e
    bound: tl.constexpr = 127 * (256**D - 1) // 255
    shift -= (_round(m * _power_of_two(shift)) > bound).to(tl.int32)
    integer = _round(tl.where(finite, value, 0.0) * _power_of_two(shift)).to(tl.int32)

    for i in tl.static_range(D):
        digit = (integer << 24) >> 24  # the low byte, balanced
        tl.store(digits + i * plane + b * padded + at, digit.to(tl.int8), mask=at < padded)
        integer = (integer - digit) >> 8
    tl.store(unit + b, tl.where(finite, _power_of_two(-shift), float("nan")), mask=block == 0)


@triton.jit
def _power_of_two(exponent):
    """2.0**exponent as float64."""
    return (exponent.to(tl.int64) + 1023 << 52).to(tl.float64, bitcast=True)


@triton.jit
def _round(x):
    """A float64 of magnitude below 2**51 rounded to an integer, ties to even: a double past 2**52 has no fraction."""
    return (x + 6755399441055744.0) - 6755399441055744.0


@triton.jit
def sum_of(acc0, acc1, acc2, D: tl.constexpr):
    """The exact sum of D digits' int32 sums, as int64."""
    total = acc0.to(tl.int64) + (acc1.to(tl.int64) << 8)
    if D == 3:
        total += acc2.to(tl.int64) << 16
    return total


@triton.jit
def finish(sums, unit, vector, scale, D: tl.constexpr, WEIGHT: tl.constexpr):
    """Sums to float32: the factor of the weights' coding divided out, rounded, times the unit, times the scale.

    ``sums`` are int64 of D digits, and ``vector`` the indices of their units; for D = 0 they are float32. Every step
    is rounded to nearest even, without fusion, and denormals are kept.
    """
    if D == 0:
        return sums * 0.5 * tl.load(scale)
    else:
        exact = sums >> 6 if WEIGHT == SIGNED_CONSTANT else sums
        y = (exact.to(tl.float32).to(tl.float64) * tl.load(unit + vector)).to(tl.float32)
        return y * tl.load(scale)
