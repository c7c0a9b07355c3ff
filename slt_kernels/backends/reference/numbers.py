"""float32 numbers to float64 and back, exactly, even where PyTorch flushes denormal numbers to 0."""

import torch
from torch import Tensor

from ... import bits


def wide(x: Tensor) -> Tensor:
    """As float64, exactly: a conversion of a denormal float32 may give 0."""
    if x.dtype == torch.float64:
        return x
    x = x.float()
    size = bits.magnitudes(x)
    return torch.where(size < 1 << 23, (size.double() * 2.0**-149).copysign(x), x.double())


def narrow(x: Tensor) -> Tensor:
    """To the nearest float32, ties to even: a conversion that gives a denormal number may give 0."""
    integers = (x.abs() * 2.0**149).round().clamp(max=2.0**23).int()  # the bits of what is below 2**-126
    y = x.float()
    return torch.where(x.abs() < 2.0**-126, integers.view(torch.float32).copysign(y), y)


def power_of_two(exponent: Tensor) -> Tensor:
    """2.0**exponent in float64, exactly (``torch.exp2`` may be an ulp off)."""
    return (exponent.long() + 1023 << 52).view(torch.float64)
