"""All operations: the schema of each, and what makes its outputs, which is also its fake implementation.

A kernel gets the outputs first and then the arguments of the schema, ``source`` and ``window`` as `Source` and
`Window`. Matrices are ``[batch, fan]``, images ``[batch, channels, height, width]``; ``mask`` is int32, resolved
``[rows, words]`` or compact ``[ceil(free / 32)]``, with anything past the last weight; ``scale`` is one float32
element. What is computed is stated by the reference backend.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .bits import words_for
from .conv_geometry import channels_last

Outputs = Tensor | tuple[Tensor, ...]

SCHEMAS: dict[str, str] = {}
OUTPUTS: dict[str, Callable[..., Outputs]] = {}


def _operation(schema: str) -> Callable[[Callable[..., Outputs]], Callable[..., Outputs]]:
    """Adds a row; the decorated function takes the operation's arguments and makes its outputs, not yet written."""

    def add(outputs: Callable[..., Outputs]) -> Callable[..., Outputs]:
        SCHEMAS[outputs.__name__], OUTPUTS[outputs.__name__] = f"{outputs.__name__}({schema}", outputs
        return outputs

    return add


# Linear


@_operation("Tensor x, Tensor mask, Tensor scale, Tensor? bias, int[] source) -> Tensor")
def linear_forward(x, mask, scale, bias, source):
    """``y [batch, rows]``: ``x W^T + bias``."""
    return x.new_empty(x.shape[0], source.rows)


@_operation("Tensor x, Tensor mask, Tensor scale, Tensor? bias, int[] source) -> Tensor")
def linear_forward_int8(x, mask, scale, bias, source):
    """As `linear_forward`, of each row of ``x`` rounded to int8: see `reference.fixed_point.int8_sums`."""
    return linear_forward(x, mask, scale, bias, source)


@_operation("Tensor x, Tensor mask, Tensor signs, Tensor scale, Tensor? bias, int[] source, bool int8) -> Tensor")
def linear_forward_stored(x, mask, signs, scale, bias, source, int8):
    """As `linear_forward` or `linear_forward_int8`, with the sign words of ``signed_constant``: `Source.signs`."""
    return linear_forward(x, mask, scale, bias, source)


@_operation("Tensor dy, Tensor mask, Tensor scale, int[] source) -> Tensor")
def linear_grad_input(dy, mask, scale, source):
    """``dx [batch, fan]``: ``dy W``."""
    return dy.new_empty(dy.shape[0], source.fan)


@_operation("Tensor dy, Tensor x, Tensor scores, Tensor scale, int[] source) -> Tensor")
def linear_grad_scores(dy, x, scores, scale, source):
    """``[free]``: the scores' gradient, ``dL/dW * v * scale * sign(score)`` at the free weights."""
    return scores.new_empty(scores.shape, dtype=_gradient_dtype(x))


# Conv2d


@_operation("Tensor x, Tensor mask, Tensor scale, Tensor? bias, int[] source, int[] window) -> Tensor")
def conv2d_forward(x, mask, scale, bias, source, window):
    """``y [batch, rows, H', W']``, channels-last where ``x`` is."""
    return _empty_images(x, source.rows, window.output_size(*x.shape[2:]))


@_operation("Tensor x, Tensor mask, Tensor scale, Tensor? bias, int[] source, int[] window) -> Tensor")
def conv2d_forward_int8(x, mask, scale, bias, source, window):
    """As `conv2d_forward`, of each sample of ``x`` rounded to int8."""
    return conv2d_forward(x, mask, scale, bias, source, window)


@_operation("Tensor dy, Tensor mask, Tensor scale, int[] source, int[] window, SymInt[] size) -> Tensor")
def conv2d_grad_input(dy, mask, scale, source, window, size):
    """``dx [batch, C, H, W]`` for ``size = (H, W)``, channels-last where ``dy`` is."""
    return _empty_images(dy, source.fan // (window.kernel_h * window.kernel_w) * window.groups, size)


@_operation("Tensor dy, Tensor x, Tensor scores, Tensor scale, int[] source, int[] window) -> Tensor")
def conv2d_grad_scores(dy, x, scores, scale, source, window):
    """``[free]``: as for `linear_grad_scores`."""
    return scores.new_empty(scores.shape, dtype=_gradient_dtype(x))


# Embedding


@_operation("Tensor index, Tensor mask, Tensor scale, int[] source, ScalarType dtype) -> Tensor")
def embedding_forward(index, mask, scale, source, dtype):
    """``y [count, fan]`` of ``dtype``: the rows ``index`` of ``W``."""
    return scale.new_empty(index.shape[0], source.fan, dtype=dtype)


@_operation("Tensor dy, Tensor index, Tensor scores, Tensor scale, int[] source) -> Tensor")
def embedding_grad_scores(dy, index, scores, scale, source):
    """``[free]``: as for `linear_grad_scores`; rows that ``index`` does not name have 0."""
    return scores.new_empty(scores.shape, dtype=_gradient_dtype(dy))


# Masks


@_operation("Tensor[] scores, int rank) -> Tensor")
def select(scores, rank):
    """A scalar: the ``rank``-th smallest |score| of all tensors; -inf below 1, inf from the number of scores on."""
    return scores[0].new_empty(())


@_operation("Tensor scores, Tensor threshold, int[] source, bool compact) -> (Tensor, Tensor)")
def pack(scores, threshold, source, compact):
    """The mask, compact or resolved, of ``|score| > threshold``; and how many weights it keeps, int64."""
    shape = (words_for(scores.numel()),) if compact else (source.rows, source.words)
    return scores.new_empty(shape, dtype=torch.int32), scores.new_empty((), dtype=torch.int64)


@_operation("Tensor mask, int[] source) -> Tensor")
def expand(mask, source):
    """The resolved mask of a compact one."""
    return mask.new_empty(source.rows, source.words)


@_operation("Tensor mask, int[] source) -> Tensor")
def materialize(mask, source):
    """``mask * v``, int8 ``[rows, fan]``."""
    return mask.new_empty(source.rows, source.fan, dtype=torch.int8)


def _gradient_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _empty_images(like: Tensor, channels: int, size: Any) -> Tensor:
    memory_format = torch.channels_last if channels_last(like) else torch.contiguous_format
    shape = (like.shape[0], channels, *size)
    return torch.empty(shape, dtype=like.dtype, device=like.device, memory_format=memory_format)
