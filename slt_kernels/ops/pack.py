"""Pack: scores and a threshold to the words of a mask."""

import torch
from torch import Tensor

from ..source import Source
from .checks import check_source, check_tensor
from .dispatch import operation

_pack = operation("pack")


def pack(scores: Tensor, threshold: Tensor, source: Source, compact: bool) -> tuple[Tensor, Tensor]:
    """The mask that keeps the free weights with ``|score| > threshold``, strictly.

    Args:
        scores: ``[free]``, float32 or float64, in the contract's order (row, word, bit).
        threshold: a scalar of that dtype and device.
        source: of the layer.
        compact: one bit per free weight, ``[ceil(free / 32)]``; else resolved, one bit per weight, ``[rows, words]``.

    Returns:
        The mask, int32, 0 past the last weight; and how many weights it keeps, locked ones included, an int64 scalar.

    Raises:
        TypeError, ValueError: scores of another dtype, shape or number; a threshold that is no scalar of their dtype
            and device.
    """
    check_source(source)
    check_tensor("scores", scores)
    check_tensor("threshold", threshold)
    if scores.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"scores.dtype={scores.dtype}: expected float32 or float64")
    free = scores.numel() if torch.compiler.is_compiling() else source.free  # a graph cannot count
    if scores.shape != (free,):
        raise ValueError(f"scores.shape={list(scores.shape)}: expected [{free}], one per free weight")
    if threshold.numel() != 1 or threshold.dtype != scores.dtype or threshold.device != scores.device:
        raise ValueError(
            f"threshold: expected one {scores.dtype} element on {scores.device}, "
            f"got {threshold.dtype} {list(threshold.shape)} on {threshold.device}"
        )
    return _pack(scores.detach(), threshold, source, compact)
