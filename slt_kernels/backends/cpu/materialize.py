"""The masked integer weight on the CPU."""

from torch import Tensor

from ...source import Source
from . import _cpu, threads
from .arguments import kernel, resolved


@kernel("materialize")
def materialize(weight: Tensor, mask: Tensor, source: Source) -> None:
    mask = resolved(mask, source)
    _cpu.materialize(source=source, mask=mask.data_ptr(), out=weight.data_ptr(), threads=threads())
