"""Materialize: the masked integer weight, for inspection and tests."""

from torch import Tensor

from ...philox import SIGN
from ...source import Source
from . import launch


@launch.kernel("materialize")
def materialize(weight: Tensor, mask: Tensor, source: Source) -> None:
    launch.enqueue(_launch(source), mask.device, mask, weight)


@launch.planned
def _launch(source: Source) -> launch.Launch:
    return launch.Launch(
        file="materialize",
        kernel="slt_materialize",
        arguments="Materialize",
        blocks=launch.blocks(source.rows * source.words, 256),
        threads=256,
        values={"source": source, "calls": launch.calls(source, SIGN)},
        later=["mask", "out"],
    )
