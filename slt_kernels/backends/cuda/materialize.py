"""Materialize: the masked integer weight, for inspection and tests."""

from torch import Tensor

from ...source import Source
from . import launch
from .free_starts import starts_for
from .generator import THREADS, calls, takes


@launch.kernel("materialize", when=lambda mask, source: takes(source))
def materialize(weight: Tensor, mask: Tensor, source: Source) -> None:
    starts = starts_for(mask, source)
    launch.enqueue(_launch(source), mask.device, *starts, mask.contiguous(), mask.dim() == 1, weight)


@launch.planned
def _launch(source: Source) -> launch.Launch:
    return launch.Launch(
        file="materialize",
        kernel="slt_materialize",
        arguments="Materialize",
        blocks=launch.blocks(4 * source.rows * calls(source), THREADS),
        threads=THREADS,
        values={"generator": source},
        later=["segment_starts", "call_starts", "mask", "compact", "out"],
    )
