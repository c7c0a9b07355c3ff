"""Embedding: the rows that are looked up, each made where it is wanted, and the gradient of their scores."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...source import Source
from .. import reference
from .words import (
    SIGNED_CONSTANT,
    Layer,
    compact_words,
    decoded,
    frozen_words,
    integer_weight,
    resolved_words,
    sign_words,
    spread_bits,
    words_of,
)
from .grad_scores import store_grads
from .launch import blocks, free_start, free_starts, launch, normal_table


def embedding_forward(index: Tensor, mask: Tensor, scale: Tensor, source: Source, dtype: torch.dtype) -> Tensor:
    """float64 goes through the reference. A row that is not there is NaN: a device cannot raise an error."""
    if dtype == torch.float64:
        return reference.embedding_forward(index, mask, scale, source, dtype)
    layer = Layer.of(source)
    starts = free_starts(source, mask.device)
    y = torch.empty(len(index), source.fan, dtype=dtype, device=mask.device)
    n = 32
    launch(
        embedding_forward_kernel,
        layer.calls * blocks(len(index), n),
        mask.device,
        index.contiguous(),
        mask,
        starts.row,
        starts.call,
        normal_table(mask.device),
        scale,
        y,
        Layer.coded(source),
        len(index),
        WEIGHT=source.weight,
        COMPACT=mask.dim() == 1,
        N=n,
    )
    return y


def embedding_grad_scores(dy: Tensor, index: Tensor, scores: Tensor, scale: Tensor, source: Source) -> Tensor:
    """float64 goes through the reference."""
    if dy.dtype == torch.float64:
        return reference.embedding_grad_scores(dy, index, scores, scale, source)
    layer = Layer.of(source)
    starts = free_starts(source, dy.device)
    out = torch.zeros(scores.numel(), dtype=torch.float32, device=dy.device)
    # A row's look-ups are one program's loop. Those of padding_idx, and of another shard's rows, are as many as they
    # like, and their gradients are zeros: they are sent to a row that is not there.
    index = index.masked_fill(~dy.any(1), source.rows)
    index, order = index.sort(stable=True)
    ends = torch.searchsorted(index, index, right=True)
    n = 16
    launch(
        embedding_grad_scores_kernel,
        layer.calls * blocks(len(index), n),
        dy.device,
        dy.contiguous(),
        index,
        order,
        ends,
        out,
        scores.contiguous(),
        starts.row,
        starts.call,
        normal_table(dy.device),
        scale,
        Layer.coded(source),
        len(index),
        WEIGHT=source.weight,
        N=n,
    )
    return out


@triton.jit(do_not_specialize=["count"])
def embedding_forward_kernel(
    index,
    mask,
    row_starts,
    call_starts,
    table,
    scale,
    y,
    layer,
    count: "i64",
    WEIGHT: tl.constexpr,
    COMPACT: tl.constexpr,
    N: tl.constexpr,
):
    """A program makes the 128 weights of one call of N rows that are looked up."""
    layer = decoded(layer)
    call = tl.program_id(0) % layer.calls
    at = (tl.program_id(0) // layer.calls).to(tl.int64) * N + tl.arange(0, N)
    wanted = tl.load(index + at, mask=at < count, other=0)
    there = (wanted >= 0) & (wanted < layer.rows)
    row = tl.where(there, wanted, layer.rows).to(tl.int32)  # layer.rows: none
    word = words_of(layer, call)
    if COMPACT:
        free, locked = frozen_words(layer, row, word)
        keep, _ = compact_words(mask, free, locked, free_start(row_starts, call_starts, layer, row, call))
    else:
        keep = resolved_words(mask, layer, row, word)
    sign = sign_words(layer, row, call) if WEIGHT == SIGNED_CONSTANT else keep
    v = integer_weight(layer, row, word, sign, table, WEIGHT)  # [N, 128]
    value = tl.where(spread_bits(keep) != 0, v.to(tl.float32) * tl.load(scale), 0)  # +0, whatever the scale's sign
    value = tl.where(there[:, None], value, float("nan"))
    k = 128 * call - 32 * layer.skipped + tl.arange(0, 128)
    inside = (at < count)[:, None] & ((k >= 0) & (k < layer.fan))[None, :]
    tl.store(y + at[:, None] * layer.fan + k[None, :], value, mask=inside)


@triton.jit(do_not_specialize=["count"])
def embedding_grad_scores_kernel(
    dy,
    index,
    order,
    ends,
    out,
    scores,
    row_starts,
    call_starts,
    table,
    scale,
    layer,
    count: "i64",
    WEIGHT: tl.constexpr,
    N: tl.constexpr,
):
    """A program takes one call of N of the sorted look-ups, and finishes the rows that begin among them.

    ``order`` sorts the look-ups by row, and a row's end before number ``ends`` of that order. They are added in it.
    """
    layer = decoded(layer)
    call = tl.program_id(0) % layer.calls
    at = (tl.program_id(0) // layer.calls).to(tl.int64) * N + tl.arange(0, N)
    row = tl.load(index + at, mask=at < count, other=-1)
    begins = (at < count) & (row != tl.load(index + at - 1, mask=(at > 0) & (at < count), other=-1))
    begins = begins & (row >= 0) & (row < layer.rows)  # a row that is not there has no scores
    times = tl.where(begins, tl.load(ends + at, mask=begins, other=0) - at, 0)
    k = 128 * call - 32 * layer.skipped + tl.arange(0, 128)
    grad = tl.zeros([N, 128], tl.float32)
    for i in range(tl.max(times, axis=0)):
        here = tl.load(order + at + i, mask=i < times, other=0)
        inside = (i < times)[:, None] & ((k >= 0) & (k < layer.fan))[None, :]
        grad += tl.load(dy + here[:, None] * layer.fan + k[None, :], mask=inside, other=0).to(tl.float32)
    n = tl.where(begins, row, layer.rows).to(tl.int32)  # layer.rows: none
    store_grads(out, grad, scores, row_starts, call_starts, table, scale, layer, n, call, WEIGHT)
