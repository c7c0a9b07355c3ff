"""Embedding: rows generated as they are looked up, and the gradient of their scores."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...source import Source
from .arguments import kernel
from .grad_scores import store_grads
from .launch import at_16_bytes, blocks, free_start, free_starts, has_long_offsets, launch, normal_table
from .weights import integer_weight, spread_bits
from .words import (
    SIGNED_CONSTANT,
    KernelSource,
    compact_words,
    decoded,
    freeze_calls,
    frozen_words,
    resolved_words,
    sign_words,
    words_of,
)

_LONGEST_RUN = 64
"""The most look-ups of one row that a program adds one after the other; longer runs are added in pieces."""


@kernel("embedding_forward", when=lambda *arguments: arguments[-1] != torch.float64)
def embedding_forward(
    y: Tensor, index: Tensor, mask: Tensor, scale: Tensor, source: Source, dtype: torch.dtype
) -> None:
    """An index outside the rows gives NaN: a kernel cannot raise an error."""
    numbers = KernelSource.of(source)
    starts = free_starts(source, mask.device)
    n = 32
    launch(
        embedding_forward_kernel,
        numbers.calls * blocks(len(index), n),
        mask.device,
        at_16_bytes(index),
        at_16_bytes(mask),
        starts.row,
        starts.call,
        normal_table(mask.device),
        scale,
        y,
        KernelSource.coded(source),
        len(index),
        WEIGHT=source.weight,
        COMPACT=mask.dim() == 1,
        FREEZE_CALLS=freeze_calls(source) if mask.dim() == 1 else 0,
        N=n,
    )


@kernel("embedding_grad_scores", when=lambda dy, *_: dy.dtype != torch.float64)
def embedding_grad_scores(
    out: Tensor, dy: Tensor, index: Tensor, scores: Tensor, scale: Tensor, source: Source
) -> None:
    numbers, device = KernelSource.of(source), dy.device
    starts, count, n = free_starts(source, device), len(index), 16
    out.zero_()  # rows that are not looked up are not written
    # Look-ups of padding_idx or of another shard's rows may be most of the batch, and their gradients are zero: they
    # get an index past the last row, which is skipped.
    index = index.masked_fill(~dy.any(1), source.rows)
    index, order = index.sort(stable=True)
    begins, ends = torch.searchsorted(index, index), torch.searchsorted(index, index, right=True)
    programs = numbers.calls * blocks(count, n)
    dy, coded = at_16_bytes(dy), KernelSource.coded(source)
    sums, places = dy, index  # not used where no run can be long
    split = count > _LONGEST_RUN
    if split:
        place = torch.arange(count, device=device)
        piece = (ends - begins > _LONGEST_RUN) & ((place - begins) % _LONGEST_RUN == 0) & (index < source.rows)
        places = piece.cumsum(0, dtype=torch.int32) - 1
        # A run of more than _LONGEST_RUN has at most twice as many pieces as whole ones.
        shape = 2 * blocks(count, _LONGEST_RUN), source.fan
        sums = torch.empty(shape, dtype=torch.float32, device=device)
        launch(
            sum_pieces_kernel, programs, device, dy, order, ends, piece, places, sums, coded, count, N=n, L=_LONGEST_RUN
        )
    launch(
        embedding_grad_scores_kernel,
        programs,
        device,
        dy,
        index,
        order,
        ends,
        sums,
        places,
        out,
        at_16_bytes(scores),
        starts.row,
        starts.call,
        normal_table(device),
        scale,
        coded,
        count,
        WEIGHT=source.weight,
        FREEZE_CALLS=freeze_calls(source),
        LONG=has_long_offsets(source),
        SPLIT=split,
        N=n,
        L=_LONGEST_RUN,
    )


@triton.jit(do_not_specialize=["count"])
def embedding_forward_kernel(
    index,
    mask,
    row_starts,
    call_starts,
    table,
    scale,
    y,
    source,
    count: "i64",
    WEIGHT: tl.constexpr,
    COMPACT: tl.constexpr,
    FREEZE_CALLS: tl.constexpr,
    N: tl.constexpr,
):
    """A program computes the 128 weights of one call for N look-ups."""
    source = decoded(source)
    call = tl.program_id(0) % source.calls
    at = (tl.program_id(0) // source.calls).to(tl.int64) * N + tl.arange(0, N)
    wanted = tl.load(index + at, mask=at < count, other=0)
    valid = (wanted >= 0) & (wanted < source.rows)
    row = tl.where(valid, wanted, source.rows).to(tl.int32)  # source.rows: no row
    word = words_of(source, call)
    if COMPACT:
        free, locked = frozen_words(source, row, word, FREEZE_CALLS)
        row_start, start = free_start(row_starts, call_starts, source, row, call, FREEZE_CALLS)
        keep, _ = compact_words(mask, free, locked, row_start + start)
    else:
        keep = resolved_words(mask, source, row, word)
    sign = sign_words(source, row, call) if WEIGHT == SIGNED_CONSTANT else keep
    v = integer_weight(source, row, word, sign, table, WEIGHT)  # [N, 128]
    value = tl.where(spread_bits(keep) != 0, v.to(tl.float32) * tl.load(scale), 0)  # +0, whatever the scale's sign
    value = tl.where(valid[:, None], value, float("nan"))
    k = 128 * call - 32 * source.skipped + tl.arange(0, 128)
    inside = (at < count)[:, None] & ((k >= 0) & (k < source.fan))[None, :]
    tl.store(y + at[:, None] * source.fan + k[None, :], value, mask=inside)


@triton.jit(do_not_specialize=["count"])
def sum_pieces_kernel(dy, order, ends, piece, places, sums, source, count: "i64", N: tl.constexpr, L: tl.constexpr):
    """A program takes one call of N of the sorted look-ups, and adds the pieces of long runs that begin among them."""
    source = decoded(source)
    call = tl.program_id(0) % source.calls
    at = (tl.program_id(0) // source.calls).to(tl.int64) * N + tl.arange(0, N)
    begins = (at < count) & (tl.load(piece + at, mask=at < count, other=0) != 0)
    times = tl.where(begins, tl.minimum(tl.load(ends + at, mask=begins, other=0) - at, L), 0)
    k = 128 * call - 32 * source.skipped + tl.arange(0, 128)
    within = ((k >= 0) & (k < source.fan))[None, :]
    total = _sum_of_look_ups(dy, order, at, times, k, within, source.fan)
    place = tl.load(places + at, mask=begins, other=0)
    tl.store(sums + place.to(tl.int64)[:, None] * source.fan + k[None, :], total, mask=begins[:, None] & within)


@triton.jit
def _sum_of_look_ups(dy, order, at, times, k, within, fan):
    """The sums of the gradients of ``times`` [N] sorted look-ups from ``at`` [N] on, in order: float32 [N, 128]."""
    total = tl.zeros([at.shape[0], 128], tl.float32)
    for i in range(tl.max(times, axis=0)):
        here = tl.load(order + at + i, mask=i < times, other=0)
        inside = (i < times)[:, None] & within
        total += tl.load(dy + here[:, None] * fan + k[None, :], mask=inside, other=0).to(tl.float32)
    return total


@triton.jit(do_not_specialize=["count"])
def embedding_grad_scores_kernel(
    dy,
    index,
    order,
    ends,
    sums,
    places,
    out,
    scores,
    row_starts,
    call_starts,
    table,
    scale,
    source,
    count: "i64",
    WEIGHT: tl.constexpr,
    FREEZE_CALLS: tl.constexpr,
    LONG: tl.constexpr,
    SPLIT: tl.constexpr,
    N: tl.constexpr,
    L: tl.constexpr,
):
    """A program takes one call of N of the sorted look-ups, and computes the rows whose first look-up is among them.

    ``order`` sorts the look-ups by row, and ``ends`` is the end of the run of the same row. A run is added in order.
    SPLIT: for a run of more than L, ``sums`` from ``places`` on are its pieces' sums, and are added in their order.
    """
    source = decoded(source)
    call = tl.program_id(0) % source.calls
    at = (tl.program_id(0) // source.calls).to(tl.int64) * N + tl.arange(0, N)
    row = tl.load(index + at, mask=at < count, other=-1)
    begins = (at < count) & (row != tl.load(index + at - 1, mask=(at > 0) & (at < count), other=-1))
    begins = begins & (row >= 0) & (row < source.rows)  # an index outside the rows has no scores
    times = tl.where(begins, tl.load(ends + at, mask=begins, other=0) - at, 0)
    k = 128 * call - 32 * source.skipped + tl.arange(0, 128)
    within = ((k >= 0) & (k < source.fan))[None, :]
    grad = _sum_of_look_ups(dy, order, at, tl.where(times <= L, times, 0), k, within, source.fan)
    if SPLIT:
        pieces = tl.where(times > L, tl.cdiv(times, L), 0).to(tl.int32)
        place = tl.load(places + at, mask=pieces > 0, other=0)
        for i in range(tl.max(pieces, axis=0)):
            inside = (i < pieces)[:, None] & within
            grad += tl.load(sums + (place + i).to(tl.int64)[:, None] * source.fan + k[None, :], mask=inside, other=0)
    n = tl.where(begins, row, source.rows).to(tl.int32)  # source.rows: no row
    store_grads(out, grad, scores, row_starts, call_starts, table, scale, source, n, call, WEIGHT, FREEZE_CALLS, LONG)
