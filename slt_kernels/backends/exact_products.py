"""Int8 activations and stored signs for a backend that has no kernels of them, from its float32 products.

A float32 product of integers of at most 127 is exact, whatever the precision, so the results have the same bits.
"""

from functools import partial

import torch
from torch import Tensor

from ..conv_geometry import Window
from ..source import Source
from . import registry
from .reference.fixed_point import int8_sums, with_bias


def register(backend: str) -> None:
    """Registers these kernels for a backend."""
    kernel = partial(registry.kernel, backend=backend)
    kernel("linear_forward_int8")(linear_forward_int8)
    kernel("linear_forward_stored")(linear_forward_stored)
    kernel("conv2d_forward_int8")(conv2d_forward_int8)


def linear_forward_int8(y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> None:
    """Writes ``y``: one float32 product, of the integers."""
    _write("linear_forward", y, x, mask, scale, bias, source)


def conv2d_forward_int8(
    y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, window: Window
) -> None:
    """Writes ``y``: one float32 product, of the integers."""
    _write("conv2d_forward", y, x, mask, scale, None if bias is None else bias.view(-1, 1, 1), source, window)


def linear_forward_stored(
    y: Tensor, x: Tensor, mask: Tensor, signs: Tensor, scale: Tensor, bias: Tensor | None, source: Source, int8: bool
) -> None:
    """Writes ``y`` without the stored signs: generates them."""
    operation = "linear_forward_int8" if int8 else "linear_forward"
    y.copy_(registry.run(operation, x, mask, scale, bias, source))


def _write(
    operation: str, y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, *layer: tuple
) -> None:
    one = torch.ones_like(scale)

    def product(integers: Tensor) -> Tensor:
        return registry.run(operation, integers.float(), mask, one, None, *layer)

    y.copy_(with_bias(int8_sums(product, x, scale), bias))
