"""Grad_scores of Linear and Conv2d: dL/dW * v * scale * sign(score), for the free weights only.

dL/dW = dy^T x is a product without weights. The epilogue generates v and the frozen pattern of its tile, and writes the
free weights' gradients at their scores' offsets. A dense gradient exists only where the sum over columns is split, in
layers of few tiles.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...conv_geometry import Window
from ...source import Source
from ..arguments import is_highest
from .arguments import kernel, takes
from .assembly import PTX, fenced, rounded_to_tf32, set_bits
from .autotuning import choose
from .forward import touched
from .images import NO_IMAGE, POINTWISE, Image, by_pixels, flat, patches
from .launch import (
    Launch,
    Machine,
    at_16_bytes,
    blocks,
    free_start,
    free_starts,
    has_long_offsets,
    machine,
    normal_table,
    prepared,
    registers,
)
from .magnitudes import is_negative
from .split_k import split
from .tf32 import first_operand, first_places, neighbours, second_operand, second_places
from .tiles import Tile, needs_fences
from .weights import integer_weight
from .words import (
    SIGNED_CONSTANT,
    KernelSource,
    decoded,
    freeze_calls,
    frozen_words,
    of_each_word,
    popcount,
    sign_words,
    take_word,
    words_of,
)


@kernel("linear_grad_scores", when=lambda dy, x, *_: takes(x))
def linear_grad_scores(out: Tensor, dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source) -> None:
    _product(out, at_16_bytes(dy), at_16_bytes(x), len(x), scores, scale, source, None, NO_IMAGE, source.fan)


@kernel("conv2d_grad_scores", when=lambda dy, x, *_: takes(x))
def conv2d_grad_scores(
    out: Tensor, dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source, window: Window
) -> None:
    image, channels = Image.of(window, *x.shape[2:]), x.shape[1]
    columns = len(x) * image.out_height * image.out_width
    if window == POINTWISE:
        _product(out, by_pixels(dy), by_pixels(x), columns, scores, scale, source, None, NO_IMAGE, channels)
    else:
        _product(out, flat(dy), flat(x), columns, scores, scale, source, window, image, channels)


def _product(out, dy, x, columns, scores, scale, source, window, image, channels) -> None:
    starts = free_starts(source, x.device)
    epilogue = (at_16_bytes(scores), starts.row, starts.call, normal_table(x.device), scale)
    dtypes = (x.dtype, dy.dtype, scores.dtype)
    kind = (source, window, image, columns, channels, dtypes, _precision(x), machine(x.device), x.device)

    def run(tile: Tile) -> None:
        the_launch, parts = _launch(*kind, tile)
        if parts == 1:
            the_launch(dy, x, out, *epilogue)
        else:
            shape = parts, source.rows, 128 * KernelSource.of(source).calls
            grads = torch.empty(shape, dtype=torch.float32, device=x.device)
            the_launch(dy, x, grads, *epilogue)
            _sum_launch(source, parts, scores.dtype, kind[-2], x.device)(grads, out, *epilogue)

    run(choose(_key, kind, columns, x.device, _choices(*kind), run))


def _key(source, window, image, columns, channels, dtypes, precision, *_) -> tuple:
    """What an autotuned tile is kept for."""
    return ("grad_scores", dtypes[0], precision, *source[:2], source.weight, *(window or ()))


@prepared
def _choices(source, window, image, columns, channels, dtypes, precision, machine, device) -> list[Tile]:
    groups = window.groups if window else 1
    scattered = window is not None and channels // groups % 16 != 0
    return tiles(source.rows // groups, dtypes[0], precision, source.weight, scattered, machine)


@prepared
def _launch(source, window, image, columns, channels, dtypes, precision, machine, device, tile) -> tuple[Launch, int]:
    """The launch, and into how many parts the columns are split."""
    numbers, groups = KernelSource.of(source), window.groups if window else 1
    group_channels, group_rows = channels // groups, source.rows // groups
    count = groups * blocks(group_rows, tile.BN) * numbers.calls
    parts, steps = _parts(blocks(columns, tile.BM), count, tile, machine)
    made = Launch(
        grad_scores_kernel,
        count * parts,
        device,
        KernelSource.coded(source),
        image.with_any_stride(),
        columns,
        channels,
        source.fan,
        source.rows,
        group_channels,
        group_rows,
        parts,
        steps,
        WEIGHT=source.weight,
        FREEZE_CALLS=freeze_calls(source),
        LONG=has_long_offsets(source),
        CONV=window is not None,
        ONE_TAP=group_channels % 128 == 0 and numbers.skipped == 0,
        SPLIT=parts > 1,
        PRECISION=precision,
        FENCE=needs_fences(machine, tile.BN) and dtypes[0] != torch.float32,
        TRANSPOSED=transposed(dtypes[0], group_channels, tile, machine),
        **tile.meta(),
    )
    return made, parts


def _parts(steps: int, tiles: int, tile: Tile, machine: Machine) -> tuple[int, int]:
    """Into how many parts the columns are split, and the steps of each part: the fewest steps' time by `_cost`."""
    most, _ = split(steps, tile.BM, tiles, 128 * tile.BN, 0, tile.programs, machine)
    parts = min(range(1, most + 1), key=lambda parts: _cost(parts, steps, tiles, machine))
    return blocks(steps, blocks(steps, parts)), blocks(steps, parts)


def _cost(parts: int, steps: int, tiles: int, machine: Machine) -> float:
    """The time of a sum in ``parts``, in steps of one program alone on a multiprocessor.

    A second program there fills the first's waits, and so adds half of its time. By the rates of an H200 and of an
    A100, writing and reading a tile's partial sum takes a tenth of a step's product, and another launch about eight
    steps. None of this was measured.
    """
    residents = parts * tiles / machine.processors
    products = (1 + max(0, residents - 1) / 2) * blocks(steps, parts)
    return products + (8 + parts * tiles / 10 if parts > 1 else 0)


@prepared
def _sum_launch(source, parts, scores_dtype, machine, device) -> Launch:
    calls = KernelSource.of(source).calls
    n = next((n for n in (64, 32) if calls * blocks(source.rows, n) >= machine.processors), 16)
    return Launch(
        sum_grads_kernel,
        calls * blocks(source.rows, n),
        device,
        KernelSource.coded(source),
        parts,
        WEIGHT=source.weight,
        FREEZE_CALLS=freeze_calls(source),
        LONG=has_long_offsets(source),
        N=n,
        TOGETHER=max(1, 32 // n),
        **sum_registers(n),
    )


def sum_registers(n: int) -> dict[str, int]:
    """Ten programs of 16 rows per multiprocessor; more rows leave registers to Triton, which would spill."""
    return registers(48) if n == 16 else {}


@lru_cache(maxsize=4096)
def tiles(rows: int, dtype: torch.dtype, precision: str, weight: int, scattered: bool, machine: Machine) -> list[Tile]:
    """The tiles to choose from; the first follows the rule.

    A multiprocessor runs two programs of eight warps where their registers fit: one writes gradients while the other
    multiplies. They do not fit with three TF32 products. ``scattered`` inputs, read value by value (few channels), need
    registers for addresses, except in tiles of few rows.
    """
    bn = min(128, max(16, triton.next_power_of_2(rows)))
    half, warps = dtype != torch.float32, 8 if bn == 128 or scattered else 4
    light = weight == SIGNED_CONSTANT.value and machine.generation >= 9 and (half or precision == "tf32")
    two = warps == 4 or (bn <= 32 if scattered else light)
    first = Tile(bn, 64 if half and not scattered else 32, warps, 3, 2 if two else 1)
    choices = [
        first,
        first._replace(num_stages=4),
        first._replace(num_stages=2),
        first._replace(num_warps=12 - warps, programs=1),
        first._replace(BM=first.BM // 2),
    ]
    if bn > 32:
        choices.append(first._replace(BN=bn // 2))
    if half and light and not scattered and rows >= 256:  # reads dy and x less often
        choices.append(Tile(256, 64, 16, 3, 1))
    return choices


def transposed(dtype: torch.dtype, channels: int, tile: Tile, machine: Machine) -> bool:
    """Whether operands are read as in `tf32`: TF32 products that Hopper computes from shared memory, 64 rows at a time.

    Inputs of few channels are read value by value.
    """
    return dtype == torch.float32 and machine.generation == 9 and tile.BN >= 64 and channels % 16 == 0


def _precision(x: Tensor) -> str:
    """The precision of float32 products. Three TF32 products on tensor cores are as exact as float32 products."""
    if torch.version.hip:
        return "ieee"
    return "tf32x3" if is_highest(x) else "tf32"


@triton.jit(do_not_specialize=["columns", "parts", "steps"], do_not_specialize_on_alignment=["scale"])
def grad_scores_kernel(
    dy,
    x,
    out,
    scores,
    row_starts,
    call_starts,
    table,
    scale,
    source,
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
    FREEZE_CALLS: tl.constexpr,
    LONG: tl.constexpr,
    CONV: tl.constexpr,
    ONE_TAP: tl.constexpr,
    SPLIT: tl.constexpr,
    PRECISION: tl.constexpr,
    FENCE: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
):
    """A program computes dL/dW of BN rows by the 128 weights of one call, over one part of the columns, BM per step.

    Consecutive programs compute the next rows of the same call, and share x in the L2 cache. Asynchronous copies bring
    both operands to shared memory. The epilogue is `store_grads`.
    """
    source = decoded(source)
    row_blocks = tl.cdiv(group_rows, BN)
    pid = tl.program_id(0)
    row_block = pid % row_blocks
    in_group = row_block * BN + tl.arange(0, BN)
    pid = pid // row_blocks
    call = pid % source.calls
    pid = pid // source.calls
    part = pid % parts
    group = pid // parts
    first_k = 128 * call - 32 * source.skipped
    sizes = fan, channels, group_channels, group * group_channels

    acc = tl.zeros([BN, 128], tl.float32)
    for step in range(steps):
        first_m = (part * steps + step) * BM
        if TRANSPOSED:
            row_quarters, patch_quarters = (), ()
            for i in tl.static_range(4):
                m = first_m + first_places(i, BM)
                row = row_block * BN + neighbours(BN)
                inside = (m < columns) & (row < group_rows)
                at = m.to(tl.int64) * all_rows + (group * group_rows + row)
                row_quarters += (tl.load(dy + at, mask=inside, other=0),)
                m = first_m + second_places(i, BM)
                k = first_k + neighbours(128)
                offset, inside = patches(image, m, k, first_k, *sizes, CONV, ONE_TAP, False, True)
                patch_quarters += (tl.load(x + offset, mask=inside & (m < columns), other=0),)
            rows, patch = first_operand(row_quarters, BM, BN), second_operand(patch_quarters, BM, 128)
        else:
            m = (first_m + tl.arange(0, BM))[:, None]
            inside = (m < columns) & (in_group < group_rows)[None, :]
            at = m.to(tl.int64) * all_rows + (group * group_rows + in_group)[None, :]
            rows = tl.load(dy + at, mask=inside, other=0)  # [BM, BN]
            k = first_k + tl.arange(0, 128)[None, :]
            offset, inside = patches(image, m, k, first_k, *sizes, CONV, ONE_TAP, False, True)
            patch = tl.load(x + offset, mask=inside & (m < columns), other=0)  # [BM, 128]
        if FENCE:  # rows then go through registers, after the fence
            rows = fenced(rows.to(tl.uint16, bitcast=True), step).to(rows.dtype, bitcast=True)
        if PRECISION == "tf32":  # tensor cores truncate what is not rounded
            rows, patch = rounded_to_tf32(rows), rounded_to_tf32(patch)
        acc = tl.dot(rows.trans(), patch, acc, input_precision=PRECISION)
        if FENCE:
            acc = touched(acc, 2)  # one wait per step: see `touched`

    n = tl.where(in_group < group_rows, group * group_rows + in_group, source.rows)  # [BN]; source.rows: no row
    if SPLIT:
        at = (tl.cast(part, tl.int64) * source.rows + n)[:, None] * (128 * source.calls) + 128 * call
        tl.store(out + at + tl.arange(0, 128)[None, :], acc, mask=(n < source.rows)[:, None])
    else:
        store_grads(
            out, acc, scores, row_starts, call_starts, table, scale, source, n, call, WEIGHT, FREEZE_CALLS, LONG
        )


@triton.jit(do_not_specialize=["parts"], do_not_specialize_on_alignment=["scale"])
def sum_grads_kernel(
    grads,
    out,
    scores,
    row_starts,
    call_starts,
    table,
    scale,
    source,
    parts,
    WEIGHT: tl.constexpr,
    FREEZE_CALLS: tl.constexpr,
    LONG: tl.constexpr,
    N: tl.constexpr,
    TOGETHER: tl.constexpr,
):
    """A program adds the partial sums of N rows of one call, always in the same order, TOGETHER loaded at once."""
    source = decoded(source)
    call = tl.program_id(0) % source.calls
    n = tl.program_id(0) // source.calls * N + tl.arange(0, N)
    at = n.to(tl.int64)[:, None] * (128 * source.calls) + 128 * call + tl.arange(0, 128)[None, :]
    total = tl.zeros([N, 128], tl.float32)
    size = tl.cast(source.rows, tl.int64) * (128 * source.calls)
    for first in range(0, parts, TOGETHER):
        for i in tl.static_range(TOGETHER):
            part = first + i + tl.zeros([N], tl.int32)  # a vector: the interpreter compares numbers as Python
            inside = (n < source.rows) & (part < parts)
            total += tl.load(grads + (first + i) * size + at, mask=inside[:, None], other=0)
    store_grads(out, total, scores, row_starts, call_starts, table, scale, source, n, call, WEIGHT, FREEZE_CALLS, LONG)


@triton.jit
def _counts(free, FREEZE_CALLS: tl.constexpr):
    """The free weights of each word. With a frozen pattern ptxas would spill what it makes of `popcount`."""
    if PTX and FREEZE_CALLS > 0:
        return set_bits(free)
    else:
        return popcount(free)


@triton.jit
def store_grads(
    out,
    grad,
    scores,
    row_starts,
    call_starts,
    table,
    scale,
    source,
    n,
    call,
    WEIGHT: tl.constexpr,
    FREEZE_CALLS: tl.constexpr,
    LONG: tl.constexpr,
):
    """Stores dL/dW [N, 128] of rows n and one call, times v, scale and the score's sign, for the free weights.

    Scores are in the order of their words' bits, even k first: the tile is brought to that order, and a warp stores 16
    bits of two rows at once. LONG: see `has_long_offsets`. A score of 0 counts as positive.
    """
    free, _ = frozen_words(source, n, words_of(source, call), FREEZE_CALLS)  # [N, 4]
    counts = _counts(free, FREEZE_CALLS)
    base, start = free_start(row_starts, call_starts, source, n, call, FREEZE_CALLS)
    first = start + (base if LONG else base.to(tl.int32))
    first = first[:, None] + (tl.cumsum(counts, axis=1) - counts)  # [N, 4]: each word's offset
    sign = sign_words(source, n, call) & free if WEIGHT == SIGNED_CONSTANT else free
    factor = tl.load(scale)
    halves = grad.reshape([grad.shape[0], 4, 16, 2]).permute(0, 2, 1, 3).split()  # even and odd k: [N, 16, 4]
    grads = (of_each_word(halves[0]), of_each_word(halves[1]))
    for i in tl.static_range(4):  # the addresses of a whole call would not fit in registers
        free_bits = take_word(free, i)[:, None]
        sign_bits = take_word(sign, i)[:, None]
        start = take_word(first, i)[:, None]
        for half in tl.static_range(2):
            bit = (16 * half + tl.arange(0, 16))[None, :].to(tl.uint32)
            at = start + popcount(free_bits & ((1 << bit) - 1))  # [N, 16]
            inside = (free_bits & (1 << bit)) != 0
            score = tl.load(scores + at, mask=inside)
            if WEIGHT == SIGNED_CONSTANT:
                flip = sign_bits << 31 - bit & 0x80000000
                value = ((grads[half][i] * factor).to(tl.uint32, bitcast=True) ^ flip).to(tl.float32, bitcast=True)
            else:
                word = 4 * call - source.skipped + i + tl.arange(0, 1)
                v = integer_weight(source, n, word, sign, table, WEIGHT).reshape([n.shape[0], 16, 2]).split()
                value = grads[half][i] * v[half].to(tl.float32) * factor
            tl.store(out + at, tl.where(is_negative(score), -value, value), mask=inside)
