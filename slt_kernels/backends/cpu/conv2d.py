"""Conv2d on the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...conv_geometry import Window, channels_last
from ...source import Source
from .. import registry
from ..arguments import digit_count, floats
from . import _cpu, threads
from .arguments import (
    TYPES,
    dense,
    images,
    int8_digits,
    kernel,
    pointer,
    resolved,
    used_as_they_are,
    without_float64,
)
from .grad_scores import write_grad_scores


@kernel("conv2d_forward", when=lambda x, *_: without_float64(x))
def conv2d_forward(
    y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, window: Window
) -> None:
    _forward(y, x, mask, scale, bias, source, window, digit_count(x))


@kernel("conv2d_forward_int8", when=lambda x, *_: without_float64(x))
def conv2d_forward_int8(
    y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, window: Window
) -> None:
    _forward(y, x, mask, scale, bias, source, window, int8_digits(x))


def _forward(
    y: Tensor,
    x: Tensor,
    mask: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    source: Source,
    window: Window,
    digits: int,
) -> None:
    x, mask, bias = dense(x), resolved(mask, source), floats(bias)
    _cpu.conv2d_forward(
        source=source,
        window=window,
        mask=mask.data_ptr(),
        x=images(x),
        scale=scale.data_ptr(),
        bias=pointer(bias),
        y=images(y),
        digits=digits,
        threads=threads(),
    )


@registry.planner("conv2d_forward", backend="cpu")
def plan_conv2d_forward(
    mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, window: Window
) -> Callable[[Tensor], Tensor] | None:
    return _plan(mask, scale, bias, source, window, digit_count)


@registry.planner("conv2d_forward_int8", backend="cpu")
def plan_conv2d_forward_int8(
    mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, window: Window
) -> Callable[[Tensor], Tensor] | None:
    return _plan(mask, scale, bias, source, window, int8_digits)


def _plan(
    mask: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    source: Source,
    window: Window,
    digits_of: Callable[[Tensor], int],
) -> Callable[[Tensor], Tensor] | None:
    if not used_as_they_are(mask, bias):
        return None
    forward, rows, words, factor, added = (
        _cpu.conv2d_forward,
        source.rows,
        mask.data_ptr(),
        scale.data_ptr(),
        pointer(bias),
    )

    def call(x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        last, (out_height, out_width) = channels_last(x), window.output_size(height, width)
        y = torch.empty(
            (batch, rows, out_height, out_width),
            dtype=x.dtype,
            device="cpu",
            memory_format=torch.channels_last if last else torch.contiguous_format,
        )
        kind = TYPES[x.dtype]
        forward(
            source=source,
            window=window,
            mask=words,
            x=((x.data_ptr(), kind), (batch, channels, height, width, last and channels > 1)),
            scale=factor,
            bias=added,
            y=((y.data_ptr(), kind), (batch, rows, out_height, out_width, last and rows > 1)),
            digits=digits_of(x),
            threads=threads(),
        )
        return y

    return call


@kernel("conv2d_grad_input", when=lambda dy, *_: without_float64(dy))
def conv2d_grad_input(
    dx: Tensor, dy: Tensor, mask: Tensor, scale: Tensor, source: Source, window: Window, size: list[int]
) -> None:
    dy, mask = dense(dy), resolved(mask, source)
    _cpu.conv2d_grad_input(
        source=source,
        window=window,
        mask=mask.data_ptr(),
        dy=images(dy),
        scale=scale.data_ptr(),
        dx=images(dx),
        digits=digit_count(dy),
        threads=threads(),
    )


@kernel("conv2d_grad_scores", when=lambda dy, x, scores, *_: without_float64(dy, x, scores))
def conv2d_grad_scores(
    out: Tensor, dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source, window: Window
) -> None:
    write_grad_scores(out, dy, x, scores, scale, source, window)
