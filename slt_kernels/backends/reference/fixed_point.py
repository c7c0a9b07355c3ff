"""Section 7 of the weight contract: float32 products as sums of integers."""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from ...source import MAX_FAN
from ..arguments import is_highest
from .numbers import narrow, power_of_two, wide


def integer_sums(
    product: Callable[[Tensor, slice], Tensor], x: Tensor, scale: Tensor, parts: Iterable[slice] = (slice(None),)
) -> Tensor:
    """``S * scale``, where S is the sum of ``product(x, part)`` over all parts: float32 by the contract's section 7.

    ``product`` is linear with integer weights, and a part has less than 2**23 terms. One scale is shared by each
    ``x[i]``: a row of a matrix, a whole sample of a batch of images. float64 inputs are computed in float64 as they
    are. Narrower ones are rounded to fixed point: three balanced base-256 digits, or two for float32 with the precision
    "high" or "medium". (16-bit inputs take three here; the contract leaves them to the backend.)
    """
    if x.dtype == torch.float64:
        return sum(product(x, part) for part in parts) * wide(scale)
    digits = 3 if x.dtype != torch.float32 or is_highest(x) else 2
    exact = wide(x)
    if x.numel() == 0:
        return sum(product(exact, part) for part in parts).float()
    largest = 127 * (256**digits - 1) // 255
    m = exact.abs().amax(tuple(range(1, x.dim())), keepdim=True)
    finite = m.isfinite()
    _, e = torch.frexp(torch.where(finite, m, 0))
    shift = 8 * digits - 1 - e
    shift -= ((m * power_of_two(shift)).round() > largest).int()
    fixed = (torch.where(finite, exact, 0) * power_of_two(shift)).round()
    sums = sum(
        product(fixed, part).round().long() for part in parts
    )  # rounded, for a GPU's convolution may not be exact
    sums = sums.float()  # once, and without -0
    outer = (-1, *[1] * (sums.dim() - 1))
    y = narrow(sums.double() * power_of_two(-shift).view(outer))
    return torch.where(finite.view(outer), narrow(wide(y) * wide(scale)), torch.nan)


def int8_sums(product: Callable[[Tensor], Tensor], x: Tensor, scale: Tensor) -> Tensor:
    """``S * (m / 127) * scale``, float32, where S is ``product`` of the integers ``rint(x * (127 / m))``.

    ``m`` is the largest magnitude of each ``x[i]``; 0 counts as 1. Both quotients are rounded to float32, as if its
    exponent had no limit, and so is their product with ``x``. ``product`` is linear with integer weights and exact.
    Narrower inputs than float64 alone.
    """
    exact = wide(x)
    if x.numel() == 0:
        return product(exact).float()
    m = exact.abs().amax(tuple(range(1, x.dim())), keepdim=True)
    finite = m.isfinite()
    fraction, e = torch.frexp(torch.where(finite & (m > 0), m, 1))
    up, down = (127 / fraction).float().double(), (fraction / 127).float().double()
    integers = (torch.where(finite, exact, 0) * power_of_two(-e) * up).float().double().round()
    sums = product(integers).round().long().float()  # has no -0
    outer = (-1, *[1] * (sums.dim() - 1))
    y = narrow(sums.double() * (down * power_of_two(e)).view(outer))
    return torch.where(finite.view(outer), narrow(wide(y) * wide(scale)), torch.nan)


def runs(rows: int, terms: int = 1) -> list[slice]:
    """Runs of rows with fewer than 2**23 terms each, of ``terms`` per row."""
    step = max(1, MAX_FAN // terms)
    return [slice(first, first + step) for first in range(0, rows, step)]


def with_bias(sums: Tensor, bias: Tensor | None) -> Tensor:
    """One addition in the dtype of ``sums``: of float32 numbers, float64 and then float32 round as float32 does."""
    if bias is None:
        return sums
    y = wide(sums) + wide(bias)
    return y if sums.dtype == torch.float64 else narrow(y)
