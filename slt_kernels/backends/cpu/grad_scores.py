"""The scores' gradient of Linear and Conv2d on the CPU: a Linear's batch is images of one pixel."""

from torch import Tensor

from ...conv_geometry import Window
from ...source import Source
from ..arguments import digit_count
from . import _cpu, threads
from .arguments import check_count, dense, free_offsets, images


def write_grad_scores(
    out: Tensor, dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source, window: Window
) -> None:
    """Writes float32 ``out [free]`` from images ``dy`` and ``x``."""
    offsets = free_offsets(source)
    check_count("scores", scores.numel(), int(offsets[-1]), source)
    if 0 in dy.shape:
        out.zero_()
        return
    dy, x, scores = dense(dy), dense(x), scores.detach().contiguous()
    _cpu.grad_scores(
        source=source,
        window=window,
        dy=images(dy),
        x=images(x),
        scores=scores.data_ptr(),
        scale=scale.data_ptr(),
        offsets=offsets.data_ptr(),
        out=out.data_ptr(),
        digits=digit_count(x),
        threads=threads(),
    )
