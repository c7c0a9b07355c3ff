"""Materialize: the masked weight as a tensor, for inspection, tests, and code that needs one."""

import torch
from torch import Tensor

from ..backends.reference.grad_scores import grad_scores
from ..source import Source
from .autograd import once_differentiable
from .checks import check_layer, check_mask, check_source
from .dispatch import operation

_materialize = operation("materialize")


def materialize(mask: Tensor, source: Source) -> Tensor:
    """``mask * v`` as int8 ``[rows, fan]``, from a resolved or a compact mask.

    Raises:
        TypeError, ValueError: a mask that does not fit the source.
    """
    check_source(source)
    check_mask(mask, source)
    return _materialize(mask, source)


class _DenseWeight(torch.autograd.Function):
    @staticmethod
    def forward(ctx, scores, mask, scale, source):
        ctx.save_for_backward(scores, scale)
        ctx.source = source
        return _materialize(mask, source) * scale

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, scores, scale):
        dscores = grad_scores(dy.double(), dy.dtype, scores, scale, ctx.source).to(scores.dtype)
        return dscores, None, None, None


def dense_weight(scores: Tensor | None, mask: Tensor, scale: Tensor, source: Source) -> Tensor:
    """``scale * mask * v`` as float32 ``[rows, fan]``, with the gradient of `linear` for ``scores``.

    For code that multiplies by a weight itself. It materializes: use `linear` or `conv2d` where you can.

    Args:
        scores, mask, scale, source: as for `linear`.

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit, before anything runs.
    """
    check_layer(mask, scores, mask, scale, None, source)
    if scores is None:
        return _materialize(mask, source) * scale
    return _DenseWeight.apply(scores, mask, scale, source)
