"""Supermask Linear: ``y = x W^T + bias`` with ``W = scale * mask * v`` regenerated from its source."""

import torch
from torch import Tensor

from ..source import Source
from .autograd import autocast, differentiates, once_differentiable, reshaped
from .checks import check_activations, check_floating, check_layer, check_signs, check_tensor
from .dispatch import operation

forward = operation("linear_forward")
forward_int8 = operation("linear_forward_int8")
forward_stored = operation("linear_forward_stored")
grad_input = operation("linear_grad_input")
grad_scores = operation("linear_grad_scores")


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, scores, mask, scale, bias, source, signs, activations):
        needs_x = x if ctx.needs_input_grad[1] else None
        ctx.save_for_backward(needs_x, scores, mask, scale)
        ctx.source = source
        ctx.bias_dtype = None if bias is None else bias.dtype
        return _product(x, mask, scale, bias, source, signs, activations)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, x, scores, mask, scale):
        dx = dscores = dbias = None
        if ctx.needs_input_grad[0]:
            dx = grad_input(dy, mask, scale, ctx.source)
        if ctx.needs_input_grad[1]:
            dscores = grad_scores(dy, x, scores, scale, ctx.source).to(scores.dtype)
        if ctx.needs_input_grad[4]:
            dbias = dy.sum(0, dtype=torch.promote_types(dy.dtype, torch.float32)).to(ctx.bias_dtype)
        return dx, dscores, None, None, dbias, None, None, None


def _product(x, mask, scale, bias, source, signs, activations):
    if signs is not None:
        return forward_stored(x, mask, signs, scale, bias, source, activations is not None)
    return (forward if activations is None else forward_int8)(x, mask, scale, bias, source)


def linear(
    x: Tensor,
    scores: Tensor | None,
    mask: Tensor,
    scale: Tensor,
    bias: Tensor | None,
    source: Source,
    signs: Tensor | None = None,
    activations: str | None = None,
) -> Tensor:
    """A supermask Linear as a function, with gradients for ``x``, ``scores`` and ``bias``.

    Args:
        x: ``[..., fan]``, float32, float64, bfloat16 or float16; under autocast taken in its dtype.
        scores: ``[free]``, float32 or float64, or None. Only their gradient uses them: the mask decides what is kept.
        mask: int32, resolved ``[rows, words]`` or compact ``[ceil(free / 32)]``.
        scale: one float32 element, on the device of ``x``.
        bias: ``[rows]``, floating, or None.
        source: of the weights; see `Source.of`.
        signs: ``source.signs()``, int32 ``[rows, words]``, of ``signed_constant`` weights. The CPU backend reads them
            in place of generating them; the outputs have the same bits. None (default) generates them.
        activations: "int8" rounds each row of ``x`` to 255 levels, ``rint(x * (127 / m))`` with ``m = max |x|``, and
            sums integers exactly: ``y = S * (m / 127) * scale + bias``, the same bits on every backend. On normal
            inputs the error against float64 is about 9e-3 in relative norm. Gradients are those of the product of the
            ``x`` that was not rounded. None (default) rounds as `torch.set_float32_matmul_precision` says.

    Returns:
        ``[..., rows]`` in the dtype of ``x``. Its straight-through gradient to the scores (Ramanujan et al., 2020) is
        ``dL/dW * v * scale * sign(score)`` at every free weight, kept or not. There is no second derivative.

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit, before anything runs.
    """
    check_tensor("x", x)
    x = autocast(x)
    check_floating("x.dtype", x.dtype)
    check_layer(x, scores, mask, scale, bias, source)
    check_activations(activations, x)
    if signs is not None:
        check_signs(signs, x, source)
    if x.dim() == 0 or x.shape[-1] != source.fan:
        raise ValueError(f"x.shape={list(x.shape)}: expected [..., {source.fan}]")
    rows = x.reshape(-1, source.fan)
    shape = (*x.shape[:-1], source.rows)
    if not differentiates():  # an autograd.Function is a third of a small call
        return _product(rows, mask, scale, bias, source, signs, activations).view(shape)
    y = _Linear.apply(rows, scores, mask, scale, bias, source, signs, activations)
    return y if x.dim() == 2 else reshaped(y, shape)
