"""Select: the threshold, an exact order statistic of the scores' magnitudes."""

from operator import index
from typing import SupportsIndex

import torch
from torch import Tensor

from .checks import check_tensor
from .dispatch import operation

_select = operation("select")


def select(scores: list[Tensor], rank: int) -> Tensor:
    """The ``rank``-th smallest |score| of all the tensors together, without sorting or concatenating them.

    Args:
        scores: tensors of one dtype (float32 or float64) and device, any shape; at least one.
        rank: how many free weights are to be dropped. Under 1 gives -inf (all are kept); the number of scores or
            more gives inf (none is).

    Returns:
        A scalar of the scores' dtype on their device. A score is kept if its magnitude is strictly greater. NaN
        counts as the largest, and is never kept.

    Raises:
        TypeError, ValueError: a rank that is no integer; no tensor, or dtypes or devices that differ.
    """
    if isinstance(rank, bool) or not isinstance(rank, SupportsIndex):
        raise TypeError(f"rank={rank!r}: expected an integer")
    rank = min(max(index(rank), 0), 2**62)  # larger than any number of scores; fits 64 bits
    if not scores:
        raise ValueError("scores=[]: expected at least one tensor")
    for i, s in enumerate(scores):
        check_tensor(f"scores[{i}]", s)
    dtype, device = scores[0].dtype, scores[0].device
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"scores[0].dtype={dtype}: expected float32 or float64")
    for i, s in enumerate(scores):
        if s.dtype != dtype or s.device != device:
            raise ValueError(f"scores[{i}] is {s.dtype} on {s.device}: expected {dtype} on {device}, as scores[0]")
    return _select([s.detach() for s in scores], rank)
