"""The geometry of a convolution."""

from typing import NamedTuple

import torch
from torch import Tensor


class Window(NamedTuple):
    """The geometry of a convolution as nine integers, which pass through ``torch.ops``.

    Arguments are those of ``torch.nn.Conv2d``, in pixels: padding is on each side, and all others are at least 1. This
    class checks nothing; `ops.conv2d` checks ranges, and that the window fits its source.
    """

    kernel_h: int
    kernel_w: int
    stride_h: int = 1
    stride_w: int = 1
    padding_h: int = 0
    padding_w: int = 0
    dilation_h: int = 1
    dilation_w: int = 1
    groups: int = 1

    @property
    def kernel(self) -> tuple[int, int]:
        return self.kernel_h, self.kernel_w

    @property
    def stride(self) -> tuple[int, int]:
        return self.stride_h, self.stride_w

    @property
    def padding(self) -> tuple[int, int]:
        return self.padding_h, self.padding_w

    @property
    def dilation(self) -> tuple[int, int]:
        return self.dilation_h, self.dilation_w

    def output_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the output for an input of that size; less than 1 if the kernel does not fit."""
        return (
            (height + 2 * self.padding_h - self.dilation_h * (self.kernel_h - 1) - 1) // self.stride_h + 1,
            (width + 2 * self.padding_w - self.dilation_w * (self.kernel_w - 1) - 1) // self.stride_w + 1,
        )

    def input_size(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of the smallest input with an output of that size."""
        return (
            (height - 1) * self.stride_h - 2 * self.padding_h + self.dilation_h * (self.kernel_h - 1) + 1,
            (width - 1) * self.stride_w - 2 * self.padding_w + self.dilation_w * (self.kernel_w - 1) + 1,
        )


def channels_last(x: Tensor) -> bool:
    """Whether a convolution of ``x`` returns a channels-last result: if ``x`` is contiguous in that format only.

    Images of one channel are contiguous in both formats; as in PyTorch, they are channels-last if the channel has
    stride 1 (`as_channels_last` makes such).
    """
    if x.is_contiguous():
        return x.shape[1] == 1 and x.stride(1) == 1 and x.shape[2] * x.shape[3] > 1
    return x.is_contiguous(memory_format=torch.channels_last)


def as_channels_last(x: Tensor) -> Tensor:
    """Images ``x`` as `channels_last` recognizes them."""
    if x.shape[1] == 1:
        return x.contiguous().squeeze(1).unsqueeze(3).permute(0, 3, 1, 2)
    return x.contiguous(memory_format=torch.channels_last)
