"""Embedding on the CPU."""

import torch
from torch import Tensor

from ...source import Source
from . import _cpu, threads
from .arguments import check_count, free_offsets, kernel, narrow, pointer, typed


@kernel("embedding_forward", when=lambda *arguments: arguments[-1] != torch.float64)
def embedding_forward(
    y: Tensor, index: Tensor, mask: Tensor, scale: Tensor, source: Source, dtype: torch.dtype
) -> None:
    index, mask, offsets = rows_of(index, source), mask.contiguous(), free_offsets(source) if mask.dim() == 1 else None
    _cpu.embedding_forward(
        source=source,
        mask=mask.data_ptr(),
        offsets=pointer(offsets),
        index=index.data_ptr(),
        count=len(index),
        scale=scale.data_ptr(),
        y=typed(y),
        threads=threads(),
    )


@kernel("embedding_grad_scores", when=lambda dy, index, scores, *_: narrow(dy, scores))
def embedding_grad_scores(
    out: Tensor, dy: Tensor, index: Tensor, scores: Tensor, scale: Tensor, source: Source
) -> None:
    offsets = free_offsets(source)
    check_count("scores", scores.numel(), int(offsets[-1]), source)
    index, order = rows_of(index, source).sort(stable=True)
    index, counts = index.unique_consecutive(return_counts=True)
    starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    dy, scores = dy.detach().contiguous(), scores.detach().contiguous()
    out.zero_()  # rows that are not looked up are not written
    _cpu.embedding_grad_scores(
        source=source,
        index=index.data_ptr(),
        count=len(index),
        starts=starts.data_ptr(),
        order=order.data_ptr(),
        dy=typed(dy),
        scores=scores.data_ptr(),
        scale=scale.data_ptr(),
        offsets=offsets.data_ptr(),
        out=out.data_ptr(),
        threads=threads(),
    )


def rows_of(index: Tensor, source: Source) -> Tensor:
    """The index as contiguous int64; IndexError unless every number is a row."""
    if index.numel() and not (index.min() >= 0 and index.max() < source.rows):
        outside = index[(index < 0) | (index >= source.rows)][0]
        raise IndexError(f"index holds {outside}: expected rows in [0, {source.rows})")
    return index.long().contiguous()
