"""Materialize: the masked integer weight, for inspection and tests."""

import triton
import triton.language as tl
from torch import Tensor

from ...source import Source
from .arguments import kernel
from .expand import resolved
from .launch import blocks, launch, normal_table
from .weights import integer_weight, spread_bits
from .words import KernelSource, decoded, resolved_words, sign_words, words_of


@kernel("materialize")
def materialize(weight: Tensor, mask: Tensor, source: Source) -> None:
    arguments = (resolved(mask, source), normal_table(mask.device), weight, KernelSource.coded(source))
    n = 32
    programs = KernelSource.of(source).calls * blocks(source.rows, n)
    launch(materialize_kernel, programs, mask.device, *arguments, WEIGHT=source.weight, N=n)


@triton.jit
def materialize_kernel(mask, table, out, source, WEIGHT: tl.constexpr, N: tl.constexpr):
    """A program writes 128 weights of N rows: one call of signs per row, or eight of bytes."""
    source = decoded(source)
    call = tl.program_id(0) % source.calls
    row = tl.program_id(0) // source.calls * N + tl.arange(0, N)
    k = 128 * call - 32 * source.skipped + tl.arange(0, 128)
    word = words_of(source, call)
    keep = spread_bits(resolved_words(mask, source, row, word)).to(tl.int8)  # [N, 128]
    v = integer_weight(source, row, word, sign_words(source, row, call), table, WEIGHT)  # [N, 128]
    inside = (row < source.rows)[:, None] & ((k >= 0) & (k < source.fan))[None, :]
    tl.store(out + row.to(tl.int64)[:, None] * source.fan + k[None, :], v * keep, mask=inside)
