"""Comparison of scores by their bits: as integers these are in the order of the magnitudes.

A comparison of floats would treat denormals as 0 where the device, or the interpreter's thread, flushes them.
"""

import triton
import triton.language as tl


@triton.jit
def magnitude(x):
    """The bits of |x| as int32 or int64. NaN is above infinity."""
    if x.dtype == tl.float64:
        return x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def is_number(size):
    """Whether a magnitude is not NaN."""
    return size <= (0x7FF0000000000000 if size.dtype == tl.int64 else 0x7F800000)


@triton.jit
def is_negative(x):
    """x < 0: false for -0.0 and NaN. The bits of negative numbers are consecutive, above those of -0.0."""
    if x.dtype == tl.float64:
        return x.to(tl.uint64, bitcast=True) - 0x8000000000000001 <= 0x7FEFFFFFFFFFFFFF
    else:
        return x.to(tl.uint32, bitcast=True) - 0x80000001 <= 0x7F7FFFFF


@triton.jit
def exceeds(x, threshold):
    """|x| > threshold: false for NaN."""
    size, limit = magnitude(x), magnitude(threshold)
    numbers = is_number(size) & is_number(limit)
    return numbers & (size > tl.where(is_negative(threshold), -1, limit))
