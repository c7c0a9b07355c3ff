"""The CPU backend's convolutions against the reference's, in both memory formats."""

import torch
from computed_once import ComputedOnce
from torch import Tensor

from slt_kernels import backends
from slt_kernels.conv_geometry import Window
from slt_kernels.source import Source

cpu, reference = backends.on("cpu"), ComputedOnce(backends.on("reference"))

SCALE = torch.tensor(0.37)
FORMATS = (torch.contiguous_format, torch.channels_last)


def check_bits(source: Source, mask: Tensor, window: Window, x: Tensor, dy: Tensor) -> None:
    """forward and grad_input of float32 have the same bits."""
    size, bias = list(x.shape[2:]), torch.randn(source.rows)
    y = reference.conv2d_forward(x, mask, SCALE, bias, source, window)
    dx = reference.conv2d_grad_input(dy, mask, SCALE, source, window, size)
    for memory_format in FORMATS:
        x, dy = x.to(memory_format=memory_format), dy.to(memory_format=memory_format)
        assert torch.equal(cpu.conv2d_forward(x, mask, SCALE, bias, source, window), y)
        assert torch.equal(cpu.conv2d_grad_input(dy, mask, SCALE, source, window, size), dx)


def check_rounding(source: Source, mask: Tensor, window: Window, x: Tensor, dy: Tensor) -> None:
    """forward and grad_input of 16 bits have no more error than rounding the result."""
    size, bound = list(x.shape[2:]), 1.01 * torch.finfo(x.dtype).eps / 2
    y = reference.conv2d_forward(x.double(), mask, SCALE, None, source, window)
    dx = reference.conv2d_grad_input(dy.double(), mask, SCALE, source, window, size)
    for memory_format in FORMATS:
        x, dy = x.to(memory_format=memory_format), dy.to(memory_format=memory_format)
        for got, expected in (
            (cpu.conv2d_forward(x, mask, SCALE, None, source, window), y),
            (cpu.conv2d_grad_input(dy, mask, SCALE, source, window, size), dx),
        ):
            assert got.dtype == x.dtype
            assert (got.double() - expected).norm() <= bound * expected.norm()
