"""Conv2d: its forward, by one kernel for few channels and rows per group and by another for all others."""

import torch
from torch import Tensor

from ...conv_geometry import Window, channels_last
from ...source import Source
from ..arguments import floats
from . import depthwise, launch, product


def _images(x: Tensor, window: Window) -> product.Images:
    return product.Images(len(x), tuple(x.shape[1:]), window, channels_last(x))


@launch.kernel(
    "conv2d_forward",
    when=lambda x, mask, scale, bias, source, window: depthwise.takes(x, source, depthwise.forward_of(x, window)),
)
def conv2d_forward_narrow(
    y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, window: Window
) -> None:
    depthwise.convolve(y, x.detach(), mask, scale, floats(bias), source, depthwise.forward_of(x, window))


@launch.kernel(
    "conv2d_forward",
    when=lambda x, mask, scale, bias, source, window: product.takes(x, _images(x, window), source),
)
def conv2d_forward(
    y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, window: Window
) -> None:
    flat = x.detach().contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(1)
    product.forward(y, flat, mask.contiguous(), scale, floats(bias), source, _images(x, window))
