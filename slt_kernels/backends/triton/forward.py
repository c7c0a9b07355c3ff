"""Forward of Linear and Conv2d: y = x W^T, with W generated where it is used.

The product is y^T = W x^T. W is the first operand of the tensor cores, which Hopper reads from registers, so weights go
from Philox to the product without shared memory.
"""

from functools import lru_cache

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...conv_geometry import Window
from ...source import Source
from .. import exact_products
from ..arguments import digit_count
from .arguments import kernel, takes
from .assembly import fenced
from .autotuning import choose
from .expand import resolved
from .fixed_point import sum_of, to_digits
from .images import NO_IMAGE, POINTWISE, Image, by_pixels, flat, padded, patches, write_images
from .launch import Launch, Machine, at_16_bytes, blocks, free_start, free_starts, machine, normal_table, prepared
from .split_k import split, store_product, workspace
from .tiles import Tile, narrowed, needs_fences, pieces, resident
from .weights import byte_quads, coded_words, sign_floats, sign_quads
from .words import (
    NORMAL,
    SIGNED_CONSTANT,
    KernelSource,
    compact_words,
    decoded,
    freeze_calls,
    frozen_words,
    full,
    resolved_words,
    sign_words,
    words_of,
)

COMPACT_COLUMNS = 64
"""Up to this many columns the kernel takes a compact mask and generates each weight's frozen pattern once. Each further
block of columns would generate it again, at several times the cost of a weight: the mask is expanded first."""

exact_products.register("triton")


@kernel("linear_forward", when=takes)
def linear_forward(y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> None:
    _product(y, at_16_bytes(x), mask, scale, bias, source, None, NO_IMAGE, source.fan)


@kernel("conv2d_forward", when=takes)
def conv2d_forward(
    y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, window: Window
) -> None:
    image = Image.of(window, *x.shape[2:])
    with write_images(y) as pixels:
        if window == POINTWISE and not uses_digits(x, source):  # digits have a unit for each image
            _product(pixels, by_pixels(x), mask, scale, bias, source, None, NO_IMAGE, source.fan)
        else:
            _product(pixels, flat(x), mask, scale, bias, source, window, image, x.shape[1])


def uses_digits(x: Tensor, source: Source) -> bool:
    """Whether the product is one of integers: all except 16-bit inputs with ``signed_constant`` weights."""
    return x.dtype == torch.float32 or source.weight != SIGNED_CONSTANT.value


def _product(y, x, mask, scale, bias, source, window, image, channels) -> None:
    """Writes ``y`` [columns, rows] from ``x`` [B, length]; ``window`` is None for a Linear."""
    if y.numel() == 0:
        return
    groups = window.groups if window else 1
    group_channels, columns = channels // groups, len(y)

    # Quad order needs words that no two taps of the window share; otherwise the kernel permutes k.
    ordered = not window or group_channels % 32 == 0
    if uses_digits(x, source):
        d = digit_count(x)
        operand, unit = to_digits(x, ordered, 1 if window else 32)
        pitch = channels if window else operand.shape[2]
        fan = operand.shape[2] if not window else source.fan  # padded with zeros to whole words of quad order
        plane = operand.stride(0)
    else:
        d, operand, unit, pitch, fan, plane = 0, x, scale, channels, source.fan, 0
        if not window:
            operand, fan = padded(x, fan)
            pitch = fan

    mask = resolved(mask, source) if columns > COMPACT_COLUMNS else at_16_bytes(mask)
    compact = mask.dim() == 1
    starts = free_starts(source, x.device) if compact else None
    group_rows = source.rows // groups

    numbers = (columns, plane, fan, pitch, source.rows, group_channels, group_rows)
    ordered = ordered or d == 0
    bias_dtype = None if bias is None else bias.dtype
    kind = (source, window, image, numbers, x.dtype, d, ordered, compact, bias_dtype, machine(x.device), x.device)

    def run(tile: Tile) -> None:
        the_launch, parts, count = _launch(*kind, tile)
        sums, arrived = workspace(parts, count, tile.BN * tile.BM, d, y)
        rows, calls = (starts.row, starts.call) if compact else (mask, mask)
        tensors = (operand, unit, mask, rows, calls, normal_table(x.device), scale, scale if bias is None else bias)
        the_launch(*tensors, y, sums, arrived)

    run(choose(_key, kind, columns, x.device, _choices(*kind), run))


def _key(source, window, image, numbers, dtype, d, ordered, compact, *_) -> tuple:
    """What an autotuned tile is kept for."""
    return ("forward", dtype, d, compact, *source[:2], source.weight, *(window or ()))


@prepared
def _choices(source, window, image, numbers, dtype, d, ordered, compact, bias_dtype, machine, device) -> list[Tile]:
    columns, *_, group_channels, group_rows = numbers
    scattered = window is not None and (group_channels % 16 != 0 or not ordered)
    plain, groups = window is None and full(source), window.groups if window else 1
    return tiles(columns, group_rows, groups, d, source.weight, compact, plain, window is not None, scattered, machine)


@prepared
def _launch(
    source, window, image, numbers, dtype, d, ordered, compact, bias_dtype, machine, device, tile
) -> tuple[Launch, int, int]:
    """The launch, into how many parts k is split, and the number of tiles."""
    columns, *_, group_channels, group_rows = numbers
    calls, skipped = KernelSource.of(source).calls, KernelSource.of(source).skipped
    count = (window.groups if window else 1) * blocks(group_rows, tile.BN) * blocks(columns, tile.BM)
    parts, steps = split(calls, 128, count, tile.BN * tile.BM, d, tile.programs, machine)
    made = Launch(
        forward_kernel,
        count * parts,
        device,
        KernelSource.coded(source),
        image.with_any_stride(),
        *numbers,
        parts,
        steps,
        WEIGHT=source.weight,
        D=d,
        CONV=window is not None,
        ORDERED=ordered,
        ONE_TAP=group_channels % 128 == 0 and skipped == 0,
        FULL=full(source) and parts * steps == calls,
        COMPACT=compact,
        FREEZE_CALLS=freeze_calls(source) if compact else 0,
        BIAS=bias_dtype is not None,
        SPLIT=parts > 1,
        PIECES=tile.pieces,
        FENCE=needs_fences(machine, tile.BN),
        **tile.meta(),
    )
    return made, parts, count


@lru_cache(maxsize=4096)
def tiles(
    columns: int,
    rows: int,
    groups: int,
    d: int,
    weight: int,
    compact: bool,
    plain: bool,
    conv: bool,
    scattered: bool,
    machine: Machine,
) -> list[Tile]:
    """The tiles to choose from; the first follows the rule: the most columns whose sums fit in registers.

    Registers are also needed for a convolution's addresses and a compact mask's offsets and bit planes; before Hopper
    also for the operand that is later in shared memory, most of all with weights from a table. ``scattered`` inputs,
    read value by value (few channels) or not in quad order, need the most.
    """
    old = machine.generation < 9
    bn = min(128, max(16, triton.next_power_of_2(rows)))
    looked_up = old and d > 2 and weight == NORMAL.value
    few = 16 if d > 2 else 32
    most = few if scattered else 32 if looked_up else 64 if d or compact or conv or old else 128
    bm = min(most, max(16, triton.next_power_of_2(columns)))
    bm = narrowed(bm, columns, groups * blocks(rows, bn), machine)
    many = (bn == 128 and (d * bm > 64 or (old and bm > 16))) or scattered
    warps = 8 if many else 4

    def tile(bn: int, bm: int, warps: int) -> Tile:
        roomy = plain or (bm > 32 and not old)  # half of the weights leave room for addresses
        programs = resident(warps, bm, d, weight, compact, roomy, old)
        return Tile(bn, bm, warps, 3 if bm < 256 else 2, programs, pieces(bm, d, machine))

    first = tile(bn, bm, warps)
    choices = [first, first._replace(num_stages=4), first.with_more_registers(), tile(bn, bm, 12 - warps)]
    if bm > 16:
        choices.append(tile(bn, bm // 2, warps))
    if rows >= 256:  # the columns are read half as often
        choices.append(tile(256, bm, 8))
    if bm == 128:  # each weight is generated half as often
        choices.append(tile(bn, 256, 8))
    return choices


@triton.jit(do_not_specialize=["columns", "parts", "steps"], do_not_specialize_on_alignment=["scale", "bias"])
def forward_kernel(
    x,
    unit,
    mask,
    row_starts,
    call_starts,
    table,
    scale,
    bias,
    out,
    partial_sums,
    arrived,
    source,
    image,
    columns: "i32",
    plane: "i64",
    fan,
    pitch,
    rows,
    group_channels,
    group_rows,
    parts: "i32",
    steps: "i32",
    WEIGHT: tl.constexpr,
    D: tl.constexpr,
    CONV: tl.constexpr,
    ORDERED: tl.constexpr,
    ONE_TAP: tl.constexpr,
    FULL: tl.constexpr,
    COMPACT: tl.constexpr,
    FREEZE_CALLS: tl.constexpr,
    BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    PIECES: tl.constexpr,
    FENCE: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
):
    """A program computes BN rows of y^T for BM columns, over one part of k, 128 k per step.

    Consecutive programs compute the next rows of the same columns, and share x in the L2 cache. In a step each of 128
    threads computes one row's call: Philox, 45 instructions. The four words of a row go through shared memory to the
    threads that hold the row in the product's layout. Those expand them to 128 weights in registers, at one instruction
    per weight in 16-bit floats and half of one in int8. Asynchronous copies bring x to shared memory some steps ahead.

    D = 0: x is bfloat16 or float16, and the sums are float32. Otherwise x is D planes of int8 digits, W is expanded
    once for all of them, and each plane has its own int32 accumulator.
    """
    source = decoded(source)
    row_blocks = tl.cdiv(group_rows, BN)
    column_blocks = tl.cdiv(columns, BM)
    pid = tl.program_id(0)
    row_block = pid % row_blocks
    pid = pid // row_blocks
    column_block = pid % column_blocks
    pid = pid // column_blocks
    part = pid % parts
    group = pid // parts

    in_group = row_block * BN + tl.arange(0, BN)
    # Rows and columns past the end repeat the last one, so that no load is out of bounds; they are not stored.
    n = group * group_rows + tl.minimum(in_group, group_rows - 1)  # [BN]
    m = tl.minimum(column_block * BM + tl.arange(0, BM), columns - 1)[:, None]
    first, channel = part * steps, group * group_channels

    if COMPACT:
        row_start, start = free_start(row_starts, call_starts, source, n, first, FREEZE_CALLS)
        start += row_start
    SIZE: tl.constexpr = 128 // PIECES
    at = tl.arange(0, SIZE)[None, :]
    if not ORDERED:  # the k at each place of quad order
        bit = (at & 31) >> 2 | (at & 3) << 3
        at = (at & 96) + ((bit & 15) << 1 | bit >> 4)

    MASKED: tl.constexpr = CONV or not FULL
    PLANES: tl.constexpr = max(D, 1)
    acc0 = tl.zeros([BN, BM], tl.int32 if D > 0 else tl.float32)
    acc1 = tl.zeros_like(acc0)
    acc2 = tl.zeros_like(acc0)
    for step in range(steps):  # calls past the last have no words, and no k inside [0, fan)
        call = first + step
        first_k = 128 * call - 32 * source.skipped
        word = words_of(source, call, FULL)
        if COMPACT:
            free, locked = frozen_words(source, n, word, FREEZE_CALLS)
            keep, start = compact_words(mask, free, locked, start)
        else:
            keep = resolved_words(mask, source, n, word, FULL)  # [BN, 4]

        sign = sign_words(source, n, call) if WEIGHT == SIGNED_CONSTANT else keep
        if FENCE:  # what was copied is read after the fence, and all weights depend on it
            copied = ()
            for i in tl.static_range(PIECES):
                k = first_k + SIZE * i + at
                offset, inside = patches(image, m, k, first_k, fan, pitch, group_channels, channel, CONV, ONE_TAP, FULL)
                for digit in tl.static_range(PLANES):
                    copied += (loaded(x + digit * plane + offset, inside, MASKED),)
            keep = fenced(keep, step)

        if WEIGHT == SIGNED_CONSTANT:
            coded = coded_words(keep, sign)
            w = sign_floats(coded, x.dtype.element_ty) if D == 0 else sign_quads(coded)
        else:
            w = byte_quads(source, n, word, keep, table, WEIGHT)  # [BN, 128]

        weights = pieces_of(w, PIECES)
        for i in tl.static_range(PIECES):
            k = first_k + SIZE * i + at
            offset, inside = patches(image, m, k, first_k, fan, pitch, group_channels, channel, CONV, ONE_TAP, FULL)
            acc0 = add_product(acc0, weights[i], copied[PLANES * i] if FENCE else loaded(x + offset, inside, MASKED))
            if D > 1:
                other = copied[PLANES * i + 1] if FENCE else loaded(x + plane + offset, inside, MASKED)
                acc1 = add_product(acc1, weights[i], other)
            if D > 2:
                other = copied[PLANES * i + 2] if FENCE else loaded(x + 2 * plane + offset, inside, MASKED)
                acc2 = add_product(acc2, weights[i], other)
        acc0 = touched(acc0, PIECES)

    sums = acc0 if D == 0 else sum_of(acc0, acc1, acc2, D)
    store_product(
        out,
        group * group_rows + in_group,
        in_group < group_rows,
        column_block * BM,
        columns,
        rows,
        image.out_height * image.out_width,
        sums,
        bias,
        partial_sums,
        arrived,
        (group * column_blocks + column_block) * row_blocks + row_block,
        part,
        parts,
        unit,
        scale,
        D,
        WEIGHT,
        BIAS,
        SPLIT,
    )


@triton.jit
def loaded(x, inside, MASKED: tl.constexpr):
    """The values at pointers x; 0 outside."""
    return tl.load(x, mask=inside, other=0) if MASKED else tl.load(x)


@triton.jit
def add_product(acc, w, x):
    """acc + w x^T: w [N, K] in registers, x [M, K]."""
    return tl.dot(w, x.trans(), acc, out_dtype=acc.dtype)


@triton.jit
def pieces_of(w, PIECES: tl.constexpr):
    """W [N, K] as a tuple of pieces [N, K / PIECES]; every weight stays in its thread."""
    tl.static_assert(PIECES <= 2)
    if PIECES == 1:
        return (w,)
    else:
        return w.reshape([w.shape[0], 2, w.shape[1] // 2]).permute(0, 2, 1).split()


@triton.jit
def touched(acc, PIECES: tl.constexpr):
    """Uses the accumulator without changing it, so that ptxas inserts one wait per piece on Hopper.

    Otherwise ptxas serializes the product and waits after every 16 k (warning C7515). Large sums of one piece are
    left alone: they are in Blackwell's tensor memory.
    """
    if acc.shape[1] > 32 and PIECES == 1:
        return acc
    else:
        return acc.to(tl.int32, bitcast=True).to(acc.dtype, bitcast=True)
