"""Supermask ConvTranspose2d: the gradient of a supermask Conv2d by its input, as a layer of its own.

It needs no kernel of its own. With ``y = conv2d(z)`` and ``z = conv_transpose2d(x)`` for one weight,
``<dz, conv_transpose2d(x)> = <conv2d(dz), x>``. So the forward is the Conv2d's grad_input, its gradient by ``x`` is the
Conv2d's forward, and its gradient by the scores is the Conv2d's, with ``x`` in the place of ``dy`` and ``dz`` in that
of the input.
"""

import torch
from torch import Tensor

from ..conv_geometry import Window
from ..source import Source
from .autograd import autocast, differentiates, once_differentiable
from .checks import check_floating, check_layer, check_tensor, check_transposed_images, check_window
from .conv2d import forward, grad_input, grad_scores


class _ConvTranspose2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scores, mask, scale, source, window, size):
        needs_x = x if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(needs_x, scores, mask, scale)
        ctx.source, ctx.window = source, window
        return grad_input(x, mask, scale, source, window, size)

    @staticmethod
    @once_differentiable
    def backward(ctx, dz, x, scores, mask, scale):
        dx = dscores = None
        if ctx.needs_input_grad[0]:
            dx = forward(dz, mask, scale, None, ctx.source, ctx.window)
        if ctx.needs_input_grad[1]:
            dscores = grad_scores(x, dz, scores, scale, ctx.source, ctx.window).to(scores.dtype)
        return dx, dscores, None, None, None, None, None


def conv_transpose2d(
    x: Tensor,
    scores: Tensor | None,
    mask: Tensor,
    scale: Tensor,
    source: Source,
    window: Window,
    output_padding: tuple[int, int] = (0, 0),
) -> Tensor:
    """A supermask ConvTranspose2d as a function, with gradients for ``x`` and ``scores``. It has no bias.

    Args:
        x: ``[B, rows, H, W]`` or ``[rows, H, W]``, float32, float64, bfloat16 or float16; under autocast in its dtype.
        scores, mask, scale, source, window: those of the `conv2d` whose input this is the gradient of. So a row of the
            source is an *input* channel here, and its fan is ``(kh, kw, c)`` over the output channels ``c`` of its
            group.
        output_padding: pixels added at the bottom and at the right, each at least 0 and below the stride.

    Returns:
        ``[B, C, H', W']`` or ``[C, H', W']`` in the dtype of ``x``, with ``C = fan / (kh * kw) * groups`` and
        ``H' = (H - 1) * stride - 2 * padding + dilation * (kh - 1) + output_padding + 1``; channels-last where ``x``
        is.

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit, before anything runs.
    """
    check_tensor("x", x)
    x = autocast(x)
    check_floating("x.dtype", x.dtype)
    check_layer(x, scores, mask, scale, None, source)
    check_window(window, source)
    size = check_transposed_images(x, source, window, output_padding)
    if torch.jit.is_tracing():  # which makes tensors of sizes; an operation takes numbers
        size = (int(size[0]), int(size[1]))
    images = x.unsqueeze(0) if x.dim() == 3 else x
    if differentiates():
        y = _ConvTranspose2d.apply(images, scores, mask, scale, source, window, size)
    else:
        y = grad_input(images, mask, scale, source, window, size)
    return y.squeeze(0) if x.dim() == 3 else y
