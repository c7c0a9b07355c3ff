"""Linear on the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...conv_geometry import Window
from ...source import Source
from .. import registry
from ..arguments import digit_count, floats
from . import _cpu, threads
from .arguments import (
    TYPES,
    int8_digits,
    kernel,
    pointer,
    resolved,
    typed,
    used_as_they_are,
    without_float64,
)
from .grad_scores import write_grad_scores


@kernel("linear_forward", when=lambda x, *_: without_float64(x))
def linear_forward(y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> None:
    _forward(y, x, mask, None, scale, bias, source, digit_count(x))


@kernel("linear_forward_int8", when=lambda x, *_: without_float64(x))
def linear_forward_int8(y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> None:
    _forward(y, x, mask, None, scale, bias, source, int8_digits(x))


@kernel("linear_forward_stored", when=lambda x, *_: without_float64(x))
def linear_forward_stored(
    y: Tensor, x: Tensor, mask: Tensor, signs: Tensor, scale: Tensor, bias: Tensor | None, source: Source, int8: bool
) -> None:
    _forward(y, x, mask, signs.contiguous(), scale, bias, source, (int8_digits if int8 else digit_count)(x))


def _forward(
    y: Tensor,
    x: Tensor,
    mask: Tensor,
    signs: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    source: Source,
    digits: int,
) -> None:
    x, mask, bias = x.detach().contiguous(), resolved(mask, source), floats(bias)
    _cpu.linear_forward(
        source=source,
        mask=mask.data_ptr(),
        signs=pointer(signs),
        x=typed(x),
        batch=len(x),
        scale=scale.data_ptr(),
        bias=pointer(bias),
        y=typed(y),
        digits=digits,
        threads=threads(),
    )


@registry.planner("linear_forward", backend="cpu")
def plan_linear_forward(
    mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source
) -> Callable[[Tensor], Tensor] | None:
    return _plan(mask, None, scale, bias, source, digit_count)


@registry.planner("linear_forward_int8", backend="cpu")
def plan_linear_forward_int8(
    mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source
) -> Callable[[Tensor], Tensor] | None:
    return _plan(mask, None, scale, bias, source, int8_digits)


@registry.planner("linear_forward_stored", backend="cpu")
def plan_linear_forward_stored(
    mask: Tensor, signs: Tensor, scale: Tensor, bias: Tensor | None, source: Source, int8: bool
) -> Callable[[Tensor], Tensor] | None:
    return _plan(mask, signs, scale, bias, source, int8_digits if int8 else digit_count)


def _plan(
    mask: Tensor,
    signs: Tensor | None,
    scale: Tensor,
    bias: Tensor | None,
    source: Source,
    digits_of: Callable[[Tensor], int],
) -> Callable[[Tensor], Tensor] | None:
    if not used_as_they_are(mask, bias):
        return None
    plan = _cpu.LinearPlan(
        source=source, mask=mask.data_ptr(), signs=pointer(signs), scale=scale.data_ptr(), bias=pointer(bias)
    )
    forward, rows, fan = plan.forward, source.rows, source.fan

    def call(x: Tensor) -> Tensor:
        y = torch.empty((*x.shape[:-1], rows), dtype=x.dtype, device="cpu")
        forward(x.data_ptr(), x.numel() // fan, y.data_ptr(), TYPES[x.dtype], digits_of(x), threads())
        return y

    return call


@kernel("linear_grad_input", when=lambda dy, *_: without_float64(dy))
def linear_grad_input(dx: Tensor, dy: Tensor, mask: Tensor, scale: Tensor, source: Source) -> None:
    dy, mask = dy.detach().contiguous(), resolved(mask, source)
    _cpu.linear_grad_input(
        source=source,
        mask=mask.data_ptr(),
        dy=typed(dy),
        batch=len(dy),
        scale=scale.data_ptr(),
        dx=typed(dx),
        digits=digit_count(dy),
        threads=threads(),
    )


@kernel("linear_grad_scores", when=lambda dy, x, scores, *_: without_float64(dy, x, scores))
def linear_grad_scores(out: Tensor, dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source) -> None:
    def one_pixel(t: Tensor) -> Tensor:
        return t[:, :, None, None]

    write_grad_scores(out, one_pixel(dy), one_pixel(x), scores, scale, source, Window(1, 1))
