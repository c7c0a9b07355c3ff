"""Grad_scores of Linear and Conv2d: dL/dW * v * scale * sign(score) at the free weights alone.

dL/dW = dy^T x is a product without weights; they are in its epilogue, which makes v and the frozen pattern of its tile
and writes the free weights' values where the scores have them. No dense gradient exists, unless the sum over the batch
is split, for layers of few tiles.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...source import Source
from ...window import Window
from .. import reference
from .words import (
    SIGNED_CONSTANT,
    Layer,
    bit_of,
    decoded,
    frozen_words,
    integer_weight,
    part_of,
    popcount,
    sign_words,
    spread,
    words_of,
)
from .images import NO_IMAGE, Image, flat, patches
from .launch import blocks, free_starts, generation, launch, normal_table
from .magnitudes import is_negative
from .tiles import Tile, choose, split


def linear_grad_scores(dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source) -> Tensor:
    """float64 goes through the reference."""
    if x.dtype == torch.float64 or x.numel() == 0:
        return reference.linear_grad_scores(dy, x, scores, scale, source)
    return _product(dy.contiguous(), x.contiguous(), len(x), scores, scale, source, None, NO_IMAGE, source.fan)


def conv2d_grad_scores(dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source, window: Window) -> Tensor:
    """float64 goes through the reference."""
    if x.dtype == torch.float64 or x.numel() == 0:
        return reference.conv2d_grad_scores(dy, x, scores, scale, source, window)
    image = Image.of(window, *x.shape[2:])
    columns = len(x) * image.out_height * image.out_width
    return _product(flat(dy), flat(x), columns, scores, scale, source, window, image, x.shape[1])


def _product(dy, x, columns, scores, scale, source, window, image, channels) -> Tensor:
    layer = Layer.of(source)
    groups = window.groups if window else 1
    group_channels, group_rows = channels // groups, source.rows // groups
    out = torch.empty(scores.numel(), dtype=torch.float32, device=x.device)
    starts = free_starts(source, x.device)

    epilogue = (scores.contiguous(), starts.row, starts.call, normal_table(x.device), scale, Layer.coded(source))

    def run(tile: Tile) -> Tensor:
        tiles = groups * blocks(group_rows, tile.BN) * layer.calls
        parts, steps = split(blocks(columns, tile.BM), tile.BM, tiles, 128 * tile.BN, 0, tile.programs, x.device)
        grads = out
        if parts > 1:
            grads = torch.empty(parts, source.rows, 128 * layer.calls, dtype=torch.float32, device=x.device)
        launch(
            grad_scores_kernel,
            tiles * parts,
            x.device,
            dy,
            x,
            grads,
            *epilogue,
            image,
            columns,
            channels,
            source.fan,
            source.rows,
            group_channels,
            group_rows,
            parts,
            steps,
            WEIGHT=source.weight,
            CONV=window is not None,
            ONE_TAP=group_channels % 128 == 0 and layer.skipped == 0,
            SPLIT=parts > 1,
            PRECISION=_precision(x),
            **tile.meta(),
        )
        if parts > 1:
            n = 16
            programs = layer.calls * blocks(source.rows, n)
            launch(sum_grads_kernel, programs, x.device, grads, out, *epilogue, parts, WEIGHT=source.weight, N=n)
        return out

    tiles = _tiles(group_rows, x.dtype, source.weight, window is not None and group_channels % 16 != 0, x.device)
    key = ("grad_scores", x.dtype, _precision(x), *source[:2], source.weight, *(window or ()))
    return run(choose(key, columns, x.device, tiles, run))


@lru_cache(maxsize=4096)
def _tiles(rows: int, dtype: torch.dtype, weight: int, scattered: bool, device: torch.device) -> list[Tile]:
    """First the rule's. ``scattered``: inputs of few channels are single values, whose addresses need registers.

    Two programs of eight warps a multiprocessor, where their registers do: one writes its gradients while the other
    multiplies.
    """
    bn = min(128, max(16, triton.next_power_of_2(rows)))
    warps = 8 if bn == 128 or scattered else 4
    light = dtype != torch.float32 and not scattered and weight == SIGNED_CONSTANT.value and generation(device) >= 9
    first = Tile(bn, 32 if dtype == torch.float32 or scattered else 64, warps, 3, 2 if light or warps == 4 else 1)
    tiles = [
        first,
        first._replace(num_stages=4),
        first._replace(num_stages=2),
        first._replace(num_warps=12 - warps, programs=1),
        first._replace(BM=first.BM // 2),
    ]
    if bn > 32:
        tiles.append(first._replace(BN=bn // 2))
    if light and rows >= 256:  # dy and x are read less often
        tiles.append(Tile(256, 64, 16, 3, 1))
    return tiles


def _precision(x: Tensor) -> str:
    """Of float32 products: three TF32 products are as exact as float32's own, where there are tensor cores."""
    if torch.version.hip:
        return "ieee"
    return "tf32x3" if torch.get_float32_matmul_precision() == "highest" else "tf32"
    return tiles


@triton.jit(do_not_specialize=["columns", "parts", "steps"])
def grad_scores_kernel(
    dy,
    x,
    out,
    scores,
    row_starts,
    call_starts,
    table,
    scale,
    layer,
    image,
    columns: "i32",
    channels,
    fan,
    all_rows,
    group_channels,
    group_rows,
    parts: "i32",
    steps: "i32",
    WEIGHT: tl.constexpr,
    CONV: tl.constexpr,
    ONE_TAP: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
):
    """A program makes dL/dW of BN rows x the 128 weights of one call, over one part of the columns, BM a step.

    Programs that follow each other take the next rows of the same call: they share x in the L2 cache. Both operands
    come through shared memory by asynchronous copies. The epilogue is `store_grads`.
    """
    layer = decoded(layer)
    row_blocks = tl.cdiv(group_rows, BN)
    pid = tl.program_id(0)
    in_group = pid % row_blocks * BN + tl.arange(0, BN)
    pid = pid // row_blocks
    call = pid % layer.calls
    pid = pid // layer.calls
    part = pid % parts
    group = pid // parts
    n = tl.where(in_group < group_rows, group * group_rows + in_group, layer.rows)  # [BN]; layer.rows: none
    k = 128 * call - 32 * layer.skipped + tl.arange(0, 128)

    acc = tl.zeros([BN, 128], tl.float32)
    for step in range(steps):
        m = (part * steps + step) * BM + tl.arange(0, BM)
        inside = (m < columns)[:, None] & (in_group < group_rows)[None, :]
        row = group * group_rows + in_group
        rows = tl.load(dy + m.to(tl.int64)[:, None] * all_rows + row[None, :], mask=inside, other=0)  # [BM, BN]
        first = group * group_channels
        offset, inside = patches(image, m, k, fan, channels, group_channels, first, CONV, ONE_TAP, False)
        inside = inside & (m < columns)[:, None]
        patch = tl.load(x + offset, mask=inside, other=0)  # [BM, 128]
        acc = tl.dot(rows.trans(), patch, acc, input_precision=PRECISION)

    if SPLIT:
        at = (tl.cast(part, tl.int64) * layer.rows + n)[:, None] * (128 * layer.calls) + 128 * call
        tl.store(out + at + tl.arange(0, 128)[None, :], acc, mask=(n < layer.rows)[:, None])
    else:
        store_grads(out, acc, scores, row_starts, call_starts, table, scale, layer, n, call, WEIGHT)


@triton.jit(do_not_specialize=["parts"])
def sum_grads_kernel(
    grads,
    out,
    scores,
    row_starts,
    call_starts,
    table,
    scale,
    layer,
    parts,
    WEIGHT: tl.constexpr,
    N: tl.constexpr,
):
    """A program adds the parts of N rows of one call, always in the same order."""
    layer = decoded(layer)
    call = tl.program_id(0) % layer.calls
    n = tl.program_id(0) // layer.calls * N + tl.arange(0, N)
    at = n.to(tl.int64)[:, None] * (128 * layer.calls) + 128 * call + tl.arange(0, 128)[None, :]
    total = tl.zeros([N, 128], tl.float32)
    for part in range(parts):
        size = tl.cast(layer.rows, tl.int64) * (128 * layer.calls)
        total += tl.load(grads + part * size + at, mask=(n < layer.rows)[:, None], other=0)
    store_grads(out, total, scores, row_starts, call_starts, table, scale, layer, n, call, WEIGHT)


@triton.jit
def store_grads(out, grad, scores, row_starts, call_starts, table, scale, layer, n, call, WEIGHT: tl.constexpr):
    """dL/dW [N, 128] of rows n and one call, to the free weights' places: times v, scale and the score's sign."""
    free, _ = frozen_words(layer, n, words_of(layer, call))  # [N, 4]
    counts = popcount(free)
    inside = n < layer.rows
    base = tl.load(row_starts + n, mask=inside, other=0)
    start = tl.load(call_starts + tl.cast(call, tl.int64) * layer.rows + n, mask=inside, other=0)
    first = start[:, None] + (tl.cumsum(counts, axis=1) - counts)  # int32 [N, 4]: of each word, in its row
    sign = sign_words(layer, n, call) if WEIGHT == SIGNED_CONSTANT else free
    # A word at a time: addresses and indices of a whole call would not fit in the registers.
    halves = grad.reshape([grad.shape[0], 2, 2, 32]).permute(0, 3, 2, 1).split()  # of [N, 32, 2]
    first_word, second_word = halves[0].split()
    third_word, fourth_word = halves[1].split()
    _store_word(out, first_word, scores, base, free, first, sign, table, scale, layer, n, call, 0, WEIGHT)
    _store_word(out, second_word, scores, base, free, first, sign, table, scale, layer, n, call, 1, WEIGHT)
    _store_word(out, third_word, scores, base, free, first, sign, table, scale, layer, n, call, 2, WEIGHT)
    _store_word(out, fourth_word, scores, base, free, first, sign, table, scale, layer, n, call, 3, WEIGHT)


@triton.jit
def _store_word(
    out,
    grad,
    scores,
    base,
    free,
    first,
    sign,
    table,
    scale,
    layer,
    n,
    call,
    WORD: tl.constexpr,
    WEIGHT: tl.constexpr,
):
    """dL/dW [N, 32] of one word. A weight's place is its word's first and the free bits below its own.

    A score of 0 counts as positive.
    """
    word = 4 * call - layer.skipped + WORD + tl.arange(0, 1)
    bit = bit_of(tl.arange(0, 32))[None, :].to(tl.uint32)
    here = spread(part_of(free, WORD, 1))  # [N, 32]
    at = base[:, None] + (spread(part_of(first, WORD, 1)) + popcount(here & ((1 << bit) - 1)))
    inside = (here >> bit & 1) != 0
    v = integer_weight(layer, n, word, part_of(sign, WORD, 1), table, WEIGHT).to(tl.float32)
    grad = grad * v * tl.load(scale)
    score = tl.load(scores + at, mask=inside, other=0)
    tl.store(out + at, tl.where(is_negative(score), -grad, grad), mask=inside)
