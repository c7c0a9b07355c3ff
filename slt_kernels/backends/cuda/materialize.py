"""Materialize: the masked integer weight, for inspection and tests."""

from torch import Tensor

from ...source import Source
from . import launch
from .free_starts import starts_for
from .generator import THREADS, calls, form, takes


@launch.kernel("materialize", when=lambda mask, source: takes(source))
def materialize(weight: Tensor, mask: Tensor, source: Source) -> None:
    starts = starts_for(mask, source)
    launch.enqueue(_launch(source, form(mask, source)), mask.device, *starts, mask.contiguous(), weight)


@launch.planned
def _launch(source: Source, form: str) -> launch.Launch:
    return launch.Launch(
        file="materialize",
        kernel=f"slt_materialize_{form}",
        arguments="Materialize",
        blocks=launch.blocks(4 * source.rows * calls(source), THREADS),
        threads=THREADS,
        values={"generator": source},
        later=["segment_starts", "call_starts", "mask", "out"],
    )
