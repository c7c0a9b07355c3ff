"""Scores by their bits, whose order as integers is that of magnitudes.

A comparison of floats takes a denormal number for 0 where a device, or the interpreter's thread, flushes them.
"""

import triton
import triton.language as tl


@triton.jit
def magnitude(x):
    """The bits of |x| as int32 or int64: NaN is above infinity."""
    if x.dtype == tl.float64:
        return x.to(tl.int64, bitcast=True) & 0x7FFFFFFFFFFFFFFF
    else:
        return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def is_number(size):
    """Whether a magnitude is that of a number."""
    return size <= (0x7FF0000000000000 if size.dtype == tl.int64 else 0x7F800000)


@triton.jit
def is_negative(x):
    """x < 0, which neither -0.0 nor a NaN is."""
    size = magnitude(x)
    return (x.to(size.dtype, bitcast=True) < 0) & (size > 0) & is_number(size)


@triton.jit
def exceeds(x, threshold):
    """|x| > threshold, which no NaN fulfils."""
    size, limit = magnitude(x), magnitude(threshold)
    numbers = is_number(size) & is_number(limit)
    return numbers & (size > tl.where(is_negative(threshold), -1, limit))
