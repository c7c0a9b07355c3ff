"""A convolution as a matrix product by implicit im2col: the address of each (output pixel, k) in the images.

Images are channels-last, [B, H, W, C]. The product's columns m are output pixels in the order (b, y, x); k counts
(kh, kw, c) as in the weight's rows. A Linear is the same product, with a vector in place of each patch.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import NamedTuple

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ...conv_geometry import Window
from .launch import at_16_bytes


class Image(NamedTuple):
    """A `Window` over images of one size, as kernels take it."""

    height: int
    width: int
    out_height: int
    out_width: int
    taps: int  # kernel_h * kernel_w
    kernel_w: int
    stride_h: int
    stride_w: int
    padding_h: int
    padding_w: int
    dilation_h: int
    dilation_w: int

    def with_any_stride(self) -> "Image":
        """For `patches`: with negated strides, as Triton compiles a kernel of its own for strides of 1."""
        return self._replace(stride_h=-self.stride_h, stride_w=-self.stride_w)

    @classmethod
    @lru_cache(maxsize=4096)
    def of(cls, window: Window, height: int, width: int) -> "Image":
        size = (height, width, *window.output_size(height, width))
        return cls(
            *size, window.kernel_h * window.kernel_w, window.kernel_w, *window.stride, *window.padding, *window.dilation
        )


POINTWISE = Window(1, 1)
"""A convolution that is a Linear of each pixel."""
NO_IMAGE = Image(*[1] * 8, 0, 0, 1, 1)  # for a Linear


_DENSE = {"memory_format": torch.contiguous_format}


def flat(x: Tensor) -> Tensor:
    """Images [B, C, H, W] as vectors [B, H * W * C]; a copy unless they are channels-last.

    Raises:
        ValueError: kernels cannot count the rows of all images in 32 bits.
    """
    if len(x) * x.shape[2] >= 2**31:
        raise ValueError(f"{len(x)} images of {x.shape[2]} rows: expected fewer than 2**31 in all; split the batch")
    return at_16_bytes(x.permute(0, 2, 3, 1)).flatten(1)


def by_pixels(x: Tensor) -> Tensor:
    """Images [B, C, H, W] as the matrix [pixels, C]; a copy unless they are channels-last."""
    return flat(x).view(-1, x.shape[1])


@contextmanager
def write_images(images: Tensor) -> Iterator[Tensor]:
    """The matrix [pixels, C] for a product to write; after the ``with`` block, ``images`` [B, C, H, W] hold it.

    It is their own memory if they are channels-last, and a copy otherwise.
    """
    channels_last = images.permute(0, 2, 3, 1)
    dense = channels_last if channels_last.is_contiguous() else torch.empty_like(channels_last, **_DENSE)
    yield dense.flatten(0, 2)
    if dense is not channels_last:
        channels_last.copy_(dense)


def padded(x: Tensor, length: int) -> tuple[Tensor, int]:
    """``x`` [B, n * length] with each ``length`` padded with zeros to a multiple of 16 values; and that multiple.

    A thread copies 16 aligned bytes at once. Unaligned rows would be loaded value by value, and the addresses would not
    fit in registers.
    """
    if length % 16:
        x = F.pad(x.view(len(x), -1, length), (0, -length % 16)).flatten(1)
    return x, length + -length % 16


@triton.jit
def quotient(i, size):
    """``i // size`` of numbers that are not negative, in fewer instructions than a signed division."""
    return (i.to(tl.uint32) // tl.cast(size, tl.uint32)).to(tl.int32)


@triton.jit
def pixel_of(image, m, MOVING: tl.constexpr):
    """The image, row and column of output pixel m.

    MOVING: m changes in a loop, and two divisions are the least. Otherwise remainders, which LLVM leaves before the
    loop: a difference it would subtract again in each step.
    """
    pixels = image.out_height * image.out_width
    if MOVING:
        b = quotient(m, pixels)
        within = m - b * pixels
        y = quotient(within, image.out_width)
        return b, y, within - y * image.out_width
    else:
        return m // pixels, m % pixels // image.out_width, m % image.out_width


@triton.jit
def below(i, size):
    """Whether 0 <= i < size."""
    return i.to(tl.uint32, bitcast=True) < tl.cast(size, tl.uint32)


@triton.jit
def patches(
    image,
    m,
    k,
    first_k,
    fan,
    channels,
    group_channels,
    first_channel,
    CONV: tl.constexpr,
    ONE_TAP: tl.constexpr,
    FULL: tl.constexpr,
    MOVING: tl.constexpr = False,
):
    """Offsets of the inputs at columns m and weights k, int64, and a mask of those inside the image.

    m and k have as many dimensions, and are broadcast against each other. For a Linear, ``channels`` is the pitch
    between vectors. ONE_TAP: all k are at the tap of ``first_k``, a scalar, so that the tap's terms are scalars. FULL:
    all k are in [0, fan). MOVING: see `pixel_of`. The image is one `with_any_stride`.
    """
    inside = m >= 0
    if CONV:
        b, y, x = pixel_of(image, m, MOVING)
        tap = first_k // group_channels if ONE_TAP else quotient(k, group_channels)
        dy = tap // image.kernel_w * image.dilation_h
        dx = tap % image.kernel_w * image.dilation_w
        y, x = y * -image.stride_h, x * -image.stride_w
        inside = below(y - image.padding_h + dy, image.height) & below(x - image.padding_w + dx, image.width)
        # Two terms, so that the 64-bit one of m is hoisted out of the loop over k. Rows of all images fit in 32 bits.
        line, place = b * image.height + y - image.padding_h, x - image.padding_w
        if MOVING:
            origin = (line.to(tl.int64) * image.width + place) * channels + first_channel
        else:  # outside the loop: ptxas would leave a product in it
            origin = line.to(tl.int64) * (image.width * channels) + place * channels + first_channel
        step = (dy * image.width + dx).to(tl.int64) * channels + (k - tap * group_channels)
        offset = origin + step
    else:
        offset = m.to(tl.int64) * channels + k
    if not FULL:
        inside = inside & below(k, fan)
    return offset, inside
