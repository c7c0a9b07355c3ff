"""Materialize: the masked integer weight, for looking and testing."""

import torch
from torch import Tensor

from ..source import Source
from ._operation import check_mask, check_source, operation


@operation("materialize(Tensor mask, int[] source) -> Tensor")
def _materialize(mask, source):
    return mask.new_empty(source[0], source[1], dtype=torch.int8)


def materialize(mask: Tensor, source: Source) -> Tensor:
    """``mask * v`` as int8 ``[rows, fan]``, from a resolved or a compact mask.

    Raises:
        TypeError, ValueError: a mask that does not fit the source.
    """
    check_source(source)
    check_mask(mask, source)
    return _materialize(mask, source)
