"""Conv2d, as PyTorch would compute it with the materialized weight."""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.grad import conv2d_input, conv2d_weight

from ...conv_geometry import Window
from ...source import Source
from .fixed_point import int8_sums, integer_sums, runs, with_bias
from .grad_scores import grad_scores
from .materialize import materialize
from .numbers import wide
from .oracle import oracle


@oracle
def conv2d_forward(
    x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, window: Window
) -> Tensor:
    weight, geometry = _kernel_and_geometry(mask, source, window)
    sums = integer_sums(lambda images, _: F.conv2d(images, weight, None, *geometry), x, scale)
    return with_bias(sums, None if bias is None else bias.view(-1, 1, 1)).to(x.dtype)


@oracle
def conv2d_forward_int8(
    x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, window: Window
) -> Tensor:
    weight, geometry = _kernel_and_geometry(mask, source, window)
    sums = int8_sums(lambda images: F.conv2d(images, weight, None, *geometry), x, scale)
    return with_bias(sums, None if bias is None else bias.view(-1, 1, 1)).to(x.dtype)


@oracle
def conv2d_grad_input(
    dy: Tensor, mask: Tensor, scale: Tensor, source: Source, window: Window, size: list[int]
) -> Tensor:
    weight, geometry = _kernel_and_geometry(mask, source, window)
    shape = (len(dy), weight.shape[1] * window.groups, *size)
    if 0 in dy.shape:
        return dy.new_zeros(shape)
    by_group = weight.unflatten(0, (window.groups, -1))

    def product(images: Tensor, rows: slice) -> Tensor:
        images = images.unflatten(1, (window.groups, -1))[:, :, rows].flatten(1, 2)
        return conv2d_input(shape, by_group[:, rows].flatten(0, 1), images, *geometry)

    parts = runs(source.rows // window.groups, window.kernel_h * window.kernel_w)
    return integer_sums(product, dy, scale, parts).to(dy.dtype)


@oracle
def conv2d_grad_scores(dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source, window: Window) -> Tensor:
    shape = (source.rows, x.shape[1] // window.groups, *window.kernel)
    geometry = (window.stride, window.padding, window.dilation, window.groups)
    if 0 in dy.shape:
        grad = dy.new_zeros(shape, dtype=torch.float64)
    else:
        grad = conv2d_weight(wide(x), shape, wide(dy), *geometry)
    return grad_scores(to_matrix(grad), x.dtype, scores, scale, source)


def _kernel_and_geometry(
    mask: Tensor, source: Source, window: Window
) -> tuple[Tensor, tuple[tuple[int, int], tuple[int, int], tuple[int, int], int]]:
    """The weight as a float64 kernel, and what PyTorch's convolutions take after their tensors."""
    weight = to_kernel(materialize(mask, source), window).double()
    return weight, (window.stride, window.padding, window.dilation, window.groups)


def to_kernel(weight: Tensor, window: Window) -> Tensor:
    """``[rows, fan]`` with fan in the order (kh, kw, c) to PyTorch's ``[out, in / groups, kh, kw]``."""
    return weight.view(len(weight), *window.kernel, -1).permute(0, 3, 1, 2)


def to_matrix(kernel: Tensor) -> Tensor:
    """The inverse of `to_kernel`."""
    return kernel.permute(0, 2, 3, 1).flatten(1)
