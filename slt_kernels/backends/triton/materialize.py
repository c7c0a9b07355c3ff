"""Materialize: the masked integer weight, for looking and testing."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...source import Source
from .words import Layer, decoded, integer_weight, resolved_words, sign_words, spread_bits, words_of
from .expand import resolved
from .launch import blocks, launch, normal_table


def materialize(mask: Tensor, source: Source) -> Tensor:
    layer = Layer.of(source)
    out = torch.empty(source.rows, source.fan, dtype=torch.int8, device=mask.device)
    arguments = (resolved(mask, source), normal_table(mask.device), out, Layer.coded(source))
    n = 32
    launch(materialize_kernel, layer.calls * blocks(layer.rows, n), mask.device, *arguments, WEIGHT=source.weight, N=n)
    return out


@triton.jit
def materialize_kernel(mask, table, out, layer, WEIGHT: tl.constexpr, N: tl.constexpr):
    """A program makes 128 weights of N rows: one call of signs a row, or eight of bytes."""
    layer = decoded(layer)
    call = tl.program_id(0) % layer.calls
    row = tl.program_id(0) // layer.calls * N + tl.arange(0, N)
    k = 128 * call - 32 * layer.skipped + tl.arange(0, 128)
    word = words_of(layer, call)
    keep = spread_bits(resolved_words(mask, layer, row, word)).to(tl.int8)  # [N, 128]
    v = integer_weight(layer, row, word, sign_words(layer, row, call), table, WEIGHT)  # [N, 128]
    inside = (row < layer.rows)[:, None] & ((k >= 0) & (k < layer.fan))[None, :]
    tl.store(out + row.to(tl.int64)[:, None] * layer.fan + k[None, :], v * keep, mask=inside)
