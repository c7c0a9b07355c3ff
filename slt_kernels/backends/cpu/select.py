"""A threshold on the CPU."""

from torch import Tensor

from . import _cpu, threads
from .arguments import kernel, without_float64


@kernel("select", when=lambda scores, rank: without_float64(scores[0]) and 1 <= rank < sum(s.numel() for s in scores))
def select(threshold: Tensor, scores: list[Tensor], rank: int) -> None:
    scores = [s.detach().contiguous() for s in scores]
    _cpu.select(
        scores=[s.data_ptr() for s in scores],
        counts=[s.numel() for s in scores],
        rank=rank,
        out=threshold.data_ptr(),
        threads=threads(),
    )
