"""Expand: a compact mask to a resolved one."""

from torch import Tensor

from ..source import Source
from .checks import check_mask, check_source
from .dispatch import operation

_expand = operation("expand")


def expand(mask: Tensor, source: Source) -> Tensor:
    """The resolved mask int32 ``[rows, words]`` of a compact one ``[ceil(free / 32)]``: frozen weights decided.

    Raises:
        TypeError, ValueError: a mask that is no compact one of the source.
    """
    check_source(source)
    check_mask(mask, source)
    if mask.dim() != 1:
        raise ValueError(f"mask.shape={list(mask.shape)}: expected a compact mask, [ceil(free / 32)]")
    return _expand(mask, source)
