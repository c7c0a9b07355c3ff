"""Expand: a compact mask, one bit per free weight, to a resolved one, one bit per weight."""

from torch import Tensor

from ...source import Source
from . import launch
from .free_starts import starts_for
from .generator import THREADS, calls, planes, takes


@launch.kernel("expand", when=lambda mask, source: takes(source))
def expand(words: Tensor, mask: Tensor, source: Source) -> None:
    launch.enqueue(_launch(source), mask.device, *starts_for(mask, source), mask.contiguous(), words)


@launch.planned
def _launch(source: Source) -> launch.Launch:
    return launch.Launch(
        file="expand",
        kernel=f"slt_expand_{planes(source)}",
        arguments="Expand",
        blocks=launch.blocks(4 * source.rows * calls(source), THREADS),
        threads=THREADS,
        values={"generator": source},
        later=["segment_starts", "call_starts", "mask", "out"],
    )
