"""Embedding on the CPU."""

from collections.abc import Callable

import torch
from torch import Tensor

from ...source import Source
from .. import registry
from . import _cpu, threads
from .arguments import TYPES, check_count, free_offsets, kernel, pointer, typed, used_as_they_are, without_float64


@kernel("embedding_forward", when=lambda index, mask, scale, source, dtype: dtype != torch.float64)
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


@registry.planner("embedding_forward", backend="cpu")
def plan_embedding_forward(
    mask: Tensor, scale: Tensor, source: Source, dtype: torch.dtype
) -> Callable[[Tensor], Tensor] | None:
    if dtype not in TYPES or not used_as_they_are(mask, None):
        return None
    forward, fan, words, factor, kind = (
        _cpu.embedding_forward,
        source.fan,
        mask.data_ptr(),
        scale.data_ptr(),
        TYPES[dtype],
    )

    def call(index: Tensor) -> Tensor:
        count = index.numel()
        check_rows(index, count, source)
        y = torch.empty((*index.shape, fan), dtype=dtype, device="cpu")
        forward(
            source=source,
            mask=words,
            offsets=0,
            index=index.data_ptr(),
            count=count,
            scale=factor,
            y=(y.data_ptr(), kind),
            threads=threads(),
        )
        return y

    return call


@kernel("embedding_grad_scores", when=lambda dy, index, scores, *_: without_float64(dy, scores))
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
    index = index.long().contiguous()
    check_rows(index, index.numel(), source)
    return index


def check_rows(index: Tensor, count: int, source: Source) -> None:
    """Raises IndexError unless every number of a contiguous int64 index is a row."""
    at = _cpu.first_outside(index.data_ptr(), count, source.rows)
    if at != count:
        raise IndexError(f"index holds {index.view(-1)[at]}: expected rows in [0, {source.rows})")
