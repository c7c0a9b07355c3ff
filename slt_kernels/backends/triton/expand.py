"""Expand: a compact mask, one bit a free weight, to a resolved one, one bit a weight."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...source import Source
from .words import Layer, compact_words, decoded, frozen_words, words_of
from .launch import blocks, free_start, free_starts, launch


def expand(mask: Tensor, source: Source) -> Tensor:
    layer = Layer.of(source)
    starts = free_starts(source, mask.device)
    out = torch.empty(source.rows, source.words, dtype=torch.int32, device=mask.device)
    arguments = (mask, starts.row, starts.call, out, Layer.coded(source))
    n = 64
    launch(expand_kernel, layer.calls * blocks(layer.rows, n), mask.device, *arguments, N=n)
    return out


def resolved(mask: Tensor, source: Source) -> Tensor:
    """A mask of either form, resolved."""
    return mask if mask.dim() == 2 else expand(mask, source)


@triton.jit
def expand_kernel(mask, row_starts, call_starts, out, layer, N: tl.constexpr):
    """A program makes the four words of one call of N rows: bits from the compact mask where the pattern is free."""
    layer = decoded(layer)
    call = tl.program_id(0) % layer.calls
    row = tl.program_id(0) // layer.calls * N + tl.arange(0, N)
    word = words_of(layer, call)
    free, locked = frozen_words(layer, row, word)  # [N, 4] each
    words, _ = compact_words(mask, free, locked, free_start(row_starts, call_starts, layer, row, call))
    inside = (row < layer.rows)[:, None] & ((word >= 0) & (word < layer.words))[None, :]
    at = row.to(tl.int64)[:, None] * layer.words + word[None, :]
    tl.store(out + at, words.to(tl.int32, bitcast=True), mask=inside)
