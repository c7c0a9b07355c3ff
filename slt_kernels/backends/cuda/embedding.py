"""Embedding: rows generated as they are looked up, and the gradient of their scores."""

import torch
from torch import Tensor

from ...source import Source
from . import launch
from .arguments import ELEMENTS
from .clear import clear
from .free_starts import free_starts, starts_for
from .generator import THREADS, calls, takes

_ROWS = THREADS // 32  # a warp makes a row
_CHUNK = 64  # of `EmbeddingGradScores` in csrc/cuda/arguments.h


@launch.kernel("embedding_forward", when=lambda index, mask, scale, source, dtype: dtype in ELEMENTS and takes(source))
def embedding_forward(
    y: Tensor, index: Tensor, mask: Tensor, scale: Tensor, source: Source, dtype: torch.dtype
) -> None:
    """An index outside the rows gives NaN: a kernel cannot raise an error."""
    prepared = _forward(source, launch.blocks(len(index), _ROWS))
    index = index.long().contiguous()
    values = *starts_for(mask, source), index, mask.contiguous(), mask.dim() == 1, scale, y, ELEMENTS[dtype], len(index)
    launch.enqueue(prepared, mask.device, *values)


@launch.kernel(
    "embedding_grad_scores",
    when=lambda dy, index, scores, scale, source: (
        dy.dtype in ELEMENTS
        and scores.dtype == torch.float32
        and takes(source)
        and launch.blocks(len(index), _CHUNK) * calls(source) < 2**31
    ),
)
def embedding_grad_scores(
    out: Tensor, dy: Tensor, index: Tensor, scores: Tensor, scale: Tensor, source: Source
) -> None:
    """Look-ups are sorted by row, and summed up in chunks of 64 in the order of the batch, in float64.

    A row that is within one chunk is complete. The sums of another's chunks are added by a second launch, in order.
    """
    clear(out)  # rows that are not looked up are not written
    index, order = index.long().sort(stable=True)
    chunks = launch.blocks(len(index), _CHUNK)
    parts = launch.workspace((chunks, 2, 128 * calls(source)), torch.float64, dy.device)
    starts = free_starts(source, dy.device)
    values = (
        *starts[:2],
        index,
        order,
        dy.contiguous(),
        ELEMENTS[dy.dtype],
        scores.contiguous(),
        scale,
        parts,
        out,
        len(index),
    )
    blocks = launch.blocks(chunks * calls(source), _ROWS)
    for kernel in ("sum", "add_parts"):
        launch.enqueue(_grad_scores(source, kernel, blocks), dy.device, *values)


@launch.planned
def _forward(source: Source, blocks: int) -> launch.Launch:
    return launch.Launch(
        file="embedding",
        kernel="slt_embedding_forward",
        arguments="EmbeddingForward",
        blocks=blocks,
        threads=THREADS,
        values={"generator": source},
        later=["segment_starts", "call_starts", "index", "mask", "compact", "scale", "y", "type", "count"],
    )


@launch.planned
def _grad_scores(source: Source, kernel: str, blocks: int) -> launch.Launch:
    return launch.Launch(
        file="embedding",
        kernel=f"slt_embedding_{kernel}",
        arguments="EmbeddingGradScores",
        blocks=blocks,
        threads=THREADS,
        values={"generator": source},
        later=[
            "segment_starts",
            "call_starts",
            "index",
            "order",
            "dy",
            "type",
            "scores",
            "scale",
            "parts",
            "out",
            "count",
        ],
    )
