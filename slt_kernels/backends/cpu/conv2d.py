"""Conv2d on the CPU."""

from torch import Tensor

from ...conv_geometry import Window
from ...source import Source
from . import _cpu, threads
from .arguments import dense, digit_count, floats, images, kernel, narrow, pointer, resolved
from .grad_scores import write_grad_scores


@kernel("conv2d_forward", when=lambda x, *_: narrow(x))
def conv2d_forward(
    y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, window: Window
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
        digits=digit_count(x),
        threads=threads(),
    )


@kernel("conv2d_grad_input", when=lambda dy, *_: narrow(dy))
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


@kernel("conv2d_grad_scores", when=lambda dy, x, scores, *_: narrow(dy, x, scores))
def conv2d_grad_scores(
    out: Tensor, dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source, window: Window
) -> None:
    write_grad_scores(out, dy, x, scores, scale, source, window)
