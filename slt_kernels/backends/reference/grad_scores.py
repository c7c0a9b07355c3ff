"""The scores' gradient from the weights' gradient."""

import torch
from torch import Tensor

from ... import bits
from ...source import Source
from .numbers import narrow, wide


def grad_scores(grad: Tensor, dtype: torch.dtype, scores: Tensor, scale: Tensor, source: Source) -> Tensor:
    """From dL/dW ``[rows, fan]`` to the free weights' straight-through gradient: dL/dW * v * scale * sign(score).

    A score of 0 counts as positive: a zero gradient would keep it there for ever.
    """
    free, _ = source.frozen_words(grad.device)
    grad = bits.to_bit_order(grad * source.integer_weight(grad.device))
    grad = _chosen(grad, bits.unpack(free), scores.numel()) * wide(scale)
    grad = torch.where(bits.is_negative(scores), -grad, grad)
    return grad if dtype == torch.float64 else narrow(grad)


def _chosen(values: Tensor, where: Tensor, count: int) -> Tensor:
    """``values[where]``, whose size a graph cannot know, so that it would break there."""
    if not torch.compiler.is_compiling():
        return values[where]
    return values.flatten()[torch.nonzero_static(where.flatten(), size=count).flatten()]
