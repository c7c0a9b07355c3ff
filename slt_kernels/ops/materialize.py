"""Materialize: the masked integer weight, for looking and testing."""

from torch import Tensor

from ..source import Source
from .checks import check_mask, check_source
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
