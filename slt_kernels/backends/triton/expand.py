"""Expand: a compact mask, one bit per free weight, to a resolved one, one bit per weight."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...operations import OUTPUTS
from ...source import Source
from .arguments import kernel
from .launch import Launch, at_16_bytes, blocks, free_start, free_starts, prepared
from .words import KernelSource, compact_words, decoded, freeze_calls, frozen_words, words_of


@kernel("expand")
def expand(words: Tensor, mask: Tensor, source: Source) -> None:
    starts = free_starts(source, mask.device)
    _launch(source, mask.device)(at_16_bytes(mask), starts.row, starts.call, words)


@prepared
def _launch(source: Source, device: torch.device) -> Launch:
    n = 64
    programs = KernelSource.of(source).calls * blocks(source.rows, n)
    numbers = KernelSource.coded(source)
    return Launch(expand_kernel, programs, device, numbers, FREEZE_CALLS=freeze_calls(source), N=n)


def resolved(mask: Tensor, source: Source) -> Tensor:
    """The resolved words of a mask of either form, from 16 bytes on."""
    if mask.dim() == 2:
        return at_16_bytes(mask)
    words = OUTPUTS["expand"](mask, source)
    expand(words, mask, source)
    return words


@triton.jit
def expand_kernel(mask, row_starts, call_starts, out, source, FREEZE_CALLS: tl.constexpr, N: tl.constexpr):
    """A program writes the four words of one call of N rows: the compact mask's bits at the free weights."""
    source = decoded(source)
    call = tl.program_id(0) % source.calls
    row = tl.program_id(0) // source.calls * N + tl.arange(0, N)
    word = words_of(source, call)
    free, locked = frozen_words(source, row, word, FREEZE_CALLS)  # [N, 4] each
    row_start, start = free_start(row_starts, call_starts, source, row, call, FREEZE_CALLS)
    words, _ = compact_words(mask, free, locked, row_start + start)
    inside = (row < source.rows)[:, None] & ((word >= 0) & (word < source.words))[None, :]
    at = row.to(tl.int64)[:, None] * source.words + word[None, :]
    tl.store(out + at, words.to(tl.int32, bitcast=True), mask=inside)
