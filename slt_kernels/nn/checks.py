"""Checks of layers' arguments."""

from numbers import Real

import torch
from torch import Tensor

from ..source import fraction

_ROUNDING = 1e-7  # sparsity and prune may be equal in decimal and differ by float32's rounding


def check_sparsity(sparsity: Real, prune: float, lock: float) -> float:
    """The sparsity as a float; ValueError unless that share of all weights, frozen ones included, can be dropped."""
    sparsity = fraction("sparsity", sparsity)
    if sparsity < prune - _ROUNDING:
        raise ValueError(
            f"sparsity={sparsity} is below prune={prune}: sparsity counts the pruned weights too, so nothing would be "
            f"left to search; expected sparsity in [{prune}, {1 - lock}]"
        )
    if sparsity > 1 - lock + _ROUNDING:
        raise ValueError(
            f"sparsity={sparsity} is above 1 - lock={1 - lock}: locked weights are always kept; "
            f"expected sparsity in [{prune}, {1 - lock}]"
        )
    return sparsity


def check_words(name: str, words: object, shape: tuple[int, ...]) -> None:
    """Raises TypeError or ValueError unless it is an int32 tensor of that shape."""
    if not isinstance(words, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(words).__name__}")
    if words.dtype != torch.int32 or words.shape != shape:
        raise ValueError(f"{name}: expected int32 {list(shape)}, got {words.dtype} {list(words.shape)}")


def scale_number(weight_scale: object) -> float:
    """The scale as a float; TypeError or ValueError unless it is one number that float32 holds."""
    try:
        value = float(weight_scale)
    except (TypeError, ValueError, RuntimeError):
        raise TypeError(f"weight_scale: expected a number, got {type(weight_scale).__name__}") from None
    if not abs(value) <= torch.finfo(torch.float32).max:  # NaN too
        raise ValueError(f"weight_scale={value}: expected a finite float32 number")
    return value
