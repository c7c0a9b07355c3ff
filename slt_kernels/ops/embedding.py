"""Supermask Embedding: rows of ``W = scale * mask * v``, those looked up regenerated from their source."""

import torch
from torch import Tensor

from ..source import Source
from .autograd import differentiates, once_differentiable, reshaped
from .checks import check_floating, check_layer, check_tensor
from .dispatch import operation

forward = operation("embedding_forward")
grad_scores = operation("embedding_grad_scores")


class _Embedding(torch.autograd.Function):
    @staticmethod
    def forward(ctx, index, scores, mask, scale, source, dtype, scale_grad_by_freq):
        ctx.save_for_backward(index, scores, scale)
        ctx.source, ctx.scale_grad_by_freq = source, scale_grad_by_freq
        return forward(index, mask, scale, source, dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, dy, index, scores, scale):
        if ctx.scale_grad_by_freq:
            _, which, counts = index.unique(return_inverse=True, return_counts=True)
            dy = dy / counts[which].unsqueeze(1)
        dscores = grad_scores(dy, index, scores, scale, ctx.source).to(scores.dtype)
        return None, dscores, None, None, None, None, None


def embedding(
    index: Tensor,
    scores: Tensor | None,
    mask: Tensor,
    scale: Tensor,
    source: Source,
    dtype: torch.dtype = torch.float32,
    scale_grad_by_freq: bool = False,
) -> Tensor:
    """A supermask Embedding as a function, with a gradient for ``scores``.

    Args:
        index: int64 or int32, any shape: rows of the source.
        scores, mask, scale, source: as for `linear`; a row of the source is one embedding.
        dtype: of the result: float32 (default), float64, bfloat16 or float16.
        scale_grad_by_freq: divide a row's gradient by how often it is looked up. Default False.

    Returns:
        ``[*index.shape, fan]``: ``scale * mask * v`` of those rows, rounded once to float32 (to float64 where that
        is the dtype), then to ``dtype``. The gradient is `linear`'s; a row's is summed over its look-ups, in an
        order that does not vary, and is 0 where it is not looked up.

    Raises:
        TypeError, ValueError: a dtype, shape or device that does not fit, before anything runs.
        IndexError: an index outside ``[0, rows)``; on the CPU, where it can be seen without waiting for a device.
    """
    check_tensor("index", index)
    if index.dtype not in (torch.int64, torch.int32):
        raise TypeError(f"index.dtype={index.dtype}: expected int64 or int32")
    check_floating("dtype", dtype)
    check_layer(index, scores, mask, scale, None, source)
    rows = index.reshape(-1)
    shape = (*index.shape, source.fan)
    if not differentiates():
        return forward(rows, mask, scale, source, dtype).view(shape)
    return reshaped(_Embedding.apply(rows, scores, mask, scale, source, dtype, scale_grad_by_freq), shape)
