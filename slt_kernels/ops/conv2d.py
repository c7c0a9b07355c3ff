"""Supermask Conv2d: a convolution with ``W = scale * mask * v`` regenerated from its source."""

import torch
from torch import Tensor

from ..backends import copies_images
from ..conv_geometry import Window
from ..source import Source
from .autograd import autocast, differentiates, once_differentiable
from .checks import check_activations, check_floating, check_images, check_layer, check_tensor, check_window
from .dispatch import operation

forward = operation("conv2d_forward")
forward_int8 = operation("conv2d_forward_int8")
grad_input = operation("conv2d_grad_input")
grad_scores = operation("conv2d_grad_scores")


class _Conv2d(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scores, mask, scale, bias, source, window, activations):
        images = _laid_out(x) if ctx.needs_input_grad[1] else x
        ctx.save_for_backward(images if ctx.needs_input_grad[1] else None, scores, mask, scale)
        ctx.source, ctx.window, ctx.size = source, window, x.shape[2:]
        ctx.bias_dtype = None if bias is None else bias.dtype
        y = _product(images, mask, scale, bias, source, window, activations)
        return y if images is x else y.contiguous()

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, x, scores, mask, scale):
        dx = dscores = dbias = None
        images = _laid_out(dy) if all(ctx.needs_input_grad[:2]) else dy
        if ctx.needs_input_grad[0]:
            dx = grad_input(images, mask, scale, ctx.source, ctx.window, ctx.size)
            dx = dx if images is dy else dx.contiguous()
        if ctx.needs_input_grad[1]:
            dscores = grad_scores(images, x, scores, scale, ctx.source, ctx.window).to(scores.dtype)
        if ctx.needs_input_grad[4]:
            dbias = dy.sum((0, 2, 3), dtype=torch.promote_types(dy.dtype, torch.float32)).to(ctx.bias_dtype)
        return dx, dscores, None, None, dbias, None, None, None


def _product(x, mask, scale, bias, source, window, activations):
    return (forward if activations is None else forward_int8)(x, mask, scale, bias, source, window)


def _laid_out(images: Tensor) -> Tensor:
    """The images as channels-last if each operation on them would copy them, and its results back.

    What an operation then returns is channels-last: it takes one more copy to bring it to the format of ``images``, as
    it would have in the operation.
    """
    if torch.compiler.is_compiling() or not copies_images(images.device):
        return images
    return images.contiguous(memory_format=torch.channels_last)


def conv2d(
    x: Tensor,
    scores: Tensor | None,
    mask: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    source: Source,
    window: Window,
    activations: str | None = None,
) -> Tensor:
    """A supermask Conv2d as a function, with gradients for ``x``, ``scores`` and ``bias``.

    Args:
        x: ``[B, C, H, W]`` or ``[C, H, W]``, float32, float64, bfloat16 or float16; under autocast in its dtype.
        scores, mask, scale, bias, source: as for `linear`; a row of the source is an output channel, and its fan is
            ``(kh, kw, c)``, the channel fastest.
        window: kernel, stride, padding, dilation and groups.
        activations: as for `linear`; ``m`` is the largest magnitude of a whole sample.

    Returns:
        ``[B, rows, H', W']`` or ``[rows, H', W']`` in the dtype of ``x``, channels-last where ``x`` is channels-last
        and not contiguous.

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit, before anything runs.
    """
    check_tensor("x", x)
    x = autocast(x)
    check_floating("x.dtype", x.dtype)
    check_layer(x, scores, mask, scale, bias, source)
    check_activations(activations, x)
    check_window(window, source)
    check_images(x, source, window)
    images = x.unsqueeze(0) if x.dim() == 3 else x
    if differentiates():
        y = _Conv2d.apply(images, scores, mask, scale, bias, source, window, activations)
    else:
        y = _product(images, mask, scale, bias, source, window, activations)
    return y.squeeze(0) if x.dim() == 3 else y
