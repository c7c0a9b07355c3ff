"""Forward of Linear and Conv2d: y = x W^T, with W made where it is used.

The product is taken as y^T = W x^T: W is the first operand of the tensor core's product, which Hopper takes from
registers, so a weight goes from Philox to the product without passing through shared memory.
"""

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...source import Source
from ...window import Window
from .. import reference
from .contract import (
    SIGNED_CONSTANT,
    Layer,
    byte_quads,
    coded_words,
    compact_words,
    frozen_words,
    full,
    resolved_words,
    sign_floats,
    sign_quads,
    sign_words,
    words_of,
)
from .digits import SUMMANDS, digits_of, finish, sum_of, to_digits
from .images import NO_IMAGE, Image, flat, images, patches
from .launch import blocks, free_start, free_starts, generation, launch, normal_table, processors


def linear_forward(x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> Tensor:
    """float64 goes through the reference."""
    if x.dtype == torch.float64 or x.numel() == 0:
        return reference.linear_forward(x, mask, scale, bias, source)
    x = x.contiguous()
    return _product(x, len(x), mask, scale, bias, source, None, NO_IMAGE, source.fan)


def conv2d_forward(
    x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, window: Window
) -> Tensor:
    """float64 goes through the reference."""
    if x.dtype == torch.float64 or x.numel() == 0:
        return reference.conv2d_forward(x, mask, scale, bias, source, window)
    image = Image.of(window, *x.shape[2:])
    columns = len(x) * image.out_height * image.out_width
    y = _product(flat(x), columns, mask, scale, bias, source, window, image, x.shape[1])
    return images(y, image.out_height, image.out_width, reference.channels_last(x))


def uses_digits(x: Tensor, source: Source) -> bool:
    """Whether the product is of integers: always but for 16-bit inputs with weights that take two bits."""
    return x.dtype == torch.float32 or source.weight != SIGNED_CONSTANT.value


def _product(x, columns, mask, scale, bias, source, window, image, channels) -> Tensor:
    """``x`` [B, length] to y [columns, rows]; ``window`` is None for a Linear."""
    layer = Layer.of(source)
    groups = window.groups if window else 1
    group_channels = channels // groups
    y = torch.empty(columns, source.rows, dtype=x.dtype, device=x.device)
    if y.numel() == 0:
        return y

    # Quads of digits need words that no two taps of the window share; else the kernel puts the order right.
    ordered = not window or group_channels % 32 == 0
    if uses_digits(x, source):
        d = digits_of(x)
        operand, unit = to_digits(x, ordered, 1 if window else 32)
        pitch = channels if window else operand.shape[2]
        fan = operand.shape[2] if not window else source.fan  # quad order mixes 32 values, so it ends with zeros
        plane = operand.stride(0)
    else:
        d, operand, unit, pitch, fan, plane = 0, x, scale, channels, source.fan, 0

    compact = mask.dim() == 1
    starts = free_starts(source, x.device) if compact else None
    tile = _tile(columns, source.rows // groups, d, window is not None or compact, ordered or d == 0, x.device)
    row_blocks = blocks(source.rows // groups, tile["BN"])
    programs = groups * row_blocks * blocks(columns, tile["BM"])
    split = split_for(layer.calls, programs, x.device, d, 128)
    sums = y
    if split.parts > 1:
        sums = torch.empty(split.parts, *y.shape, dtype=torch.int64 if d else torch.float32, device=x.device)
    launch(
        forward_kernel,
        programs * split.parts,
        x.device,
        operand,
        unit,
        mask,
        starts.row if compact else mask,
        starts.call if compact else mask,
        normal_table(x.device),
        scale,
        bias if bias is not None else scale,
        sums,
        layer,
        image,
        columns,
        plane,
        fan,
        pitch,
        source.rows,
        group_channels,
        source.rows // groups,
        split,
        WEIGHT=source.weight,
        D=d,
        CONV=window is not None,
        ORDERED=ordered or d == 0,
        ONE_TAP=group_channels % 128 == 0 and layer.skipped == 0,
        FULL=full(source) and split.parts * split.steps == layer.calls,
        COMPACT=compact,
        BIAS=bias is not None,
        SPLIT=split.parts > 1,
        **tile,
    )
    if split.parts > 1:
        pixels = image.out_height * image.out_width
        finish_sums(sums, unit, scale, bias, y, pixels, split, source.weight, d)
    return y


def _tile(columns: int, rows: int, d: int, more: bool, ordered: bool, device: torch.device) -> dict[str, int]:
    """Rows and columns of a program's tile: as many columns as their sums leave registers for.

    ``more``: a convolution's addresses, or a compact mask's starts and bit planes, need some as well; so do single
    bytes of inputs that are not in quad order, and before Hopper the operand that later processors keep in shared
    memory.
    """
    old = generation(device) < 9
    bn = min(128, max(16, triton.next_power_of_2(rows)))
    most = 32 if not ordered else 64 if d or more or old else 128
    bm = min(most, max(16, triton.next_power_of_2(columns)))
    many = bn == 128 and (d * bm > 64 or (old and bm > 16))
    return {"BN": bn, "BM": bm, "num_warps": 8 if many else 4, "num_stages": 3}


class Split(NamedTuple):
    """A sum in parts, each a program's."""

    parts: int
    steps: int  # of each part


def split_for(steps: int, programs: int, device: torch.device, d: int, summands: int) -> Split:
    """Parts of a sum of ``steps``, each of so many summands: enough for four programs on every multiprocessor, none
    with fewer than four steps, and none with more summands than an int32 holds."""
    wanted = min(4 * processors(device) // programs, blocks(steps, 4))
    needed = blocks(steps * summands, SUMMANDS) if d else 1
    of_each = blocks(steps, max(wanted, needed, 1))
    return Split(blocks(steps, of_each), of_each)


def finish_sums(sums, unit, scale, bias, out, pixels, split, weight, d) -> None:
    """Adds partial ``sums`` [parts, columns, width] to ``out`` [columns, width], finished as products are."""
    block = 256
    launch(
        finish_kernel,
        blocks(out.numel(), block),
        out.device,
        sums,
        unit,
        scale,
        scale if bias is None else bias,
        out,
        out.numel(),
        out.shape[1],
        pixels,
        split,
        WEIGHT=weight,
        D=d,
        BIAS=bias is not None,
        BLOCK=block,
    )


@triton.jit(do_not_specialize=["columns"])
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
    layer,
    image,
    columns: "i32",
    plane: "i64",
    fan,
    pitch,
    rows,
    group_channels,
    group_rows,
    split,
    WEIGHT: tl.constexpr,
    D: tl.constexpr,
    CONV: tl.constexpr,
    ORDERED: tl.constexpr,
    ONE_TAP: tl.constexpr,
    FULL: tl.constexpr,
    COMPACT: tl.constexpr,
    BIAS: tl.constexpr,
    SPLIT: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
):
    """A program makes BN rows of y^T for BM columns, over one part of k, 128 of them a step.

    Programs that follow each other take the next rows of the same columns: they share x in the L2 cache. A step, for
    a thread of 128 that has one row's call: Philox, 45 instructions; its words through shared memory to the threads
    that hold that row in the product's layout (four words for each row, where the weights are 128); then expansion
    in registers, an instruction a weight in 16-bit floats, half of one in int8. x comes through shared memory,
    by asynchronous copies some steps ahead.

    D = 0: x is bfloat16 or float16 and the sums are float32. Else x is D planes of int8 digits, W is expanded once
    for all of them, and the sums are int32, each its own accumulator.
    """
    row_blocks = tl.cdiv(group_rows, BN)
    column_blocks = tl.cdiv(columns, BM)
    pid = tl.program_id(0)
    row_block = pid % row_blocks
    pid = pid // row_blocks
    column_block = pid % column_blocks
    pid = pid // column_blocks
    part = pid % split.parts
    group = pid // split.parts

    in_group = row_block * BN + tl.arange(0, BN)
    column = column_block * BM + tl.arange(0, BM)
    n = group * group_rows + tl.minimum(in_group, group_rows - 1)  # [BN]; past the end: the last one once more,
    m = tl.minimum(column, columns - 1)  # [BM]; so that nothing is outside, and what is computed twice is stored once
    first = part * split.steps

    if COMPACT:
        start = free_start(row_starts, call_starts, layer, n, first)
    at = tl.arange(0, 128)
    if not ORDERED:  # the k at each place of a call in quad order
        bit = (at & 31) >> 2 | (at & 3) << 3
        at = (at & 96) + ((bit & 15) << 1 | bit >> 4)

    MASKED: tl.constexpr = CONV or not FULL
    acc0 = tl.zeros([BN, BM], tl.int32 if D > 0 else tl.float32)
    acc1 = tl.zeros_like(acc0)
    acc2 = tl.zeros_like(acc0)
    for step in range(split.steps):  # a call past the last has no words and no k
        call = first + step
        k = 128 * call - 32 * layer.skipped + at
        word = words_of(layer, call, FULL)
        if COMPACT:
            free, locked = frozen_words(layer, n, word)
            keep, start = compact_words(mask, free, locked, start)
        else:
            keep = resolved_words(mask, layer, n, word, FULL)  # [BN, 4]

        offset, inside = patches(image, m, k, fan, pitch, group_channels, group * group_channels, CONV, ONE_TAP, FULL)
        if WEIGHT == SIGNED_CONSTANT:
            coded = coded_words(keep, sign_words(layer, n, call))
            w = sign_floats(coded, x.dtype.element_ty) if D == 0 else sign_quads(coded)
        else:
            w = byte_quads(layer, n, word, keep, table, WEIGHT)  # [BN, 128]

        acc0 = add_product(acc0, w, x + offset, inside, MASKED)
        if D > 1:
            acc1 = add_product(acc1, w, x + plane + offset, inside, MASKED)
        if D > 2:
            acc2 = add_product(acc2, w, x + 2 * plane + offset, inside, MASKED)

    sums = acc0 if D == 0 else sum_of(acc0, acc1, acc2, D)
    there = (in_group < group_rows)[:, None] & (column < columns)[None, :]
    row = group * group_rows + in_group
    at_out = column.to(tl.int64)[None, :] * rows + row[:, None]
    if SPLIT:
        tl.store(out + tl.cast(part, tl.int64) * columns * rows + at_out, sums, mask=there)
    else:
        vector = m // (image.out_height * image.out_width)
        y = finish(sums, unit, vector[None, :], scale, D, WEIGHT)
        if BIAS:
            y += tl.load(bias + row, mask=in_group < group_rows, other=0).to(tl.float32)[:, None]
        tl.store(out + at_out, y, mask=there)


@triton.jit
def add_product(acc, w, x, inside, MASKED: tl.constexpr):
    """acc + w x^T: w [N, K] in registers, x points to [M, K]."""
    value = tl.load(x, mask=inside, other=0) if MASKED else tl.load(x)
    return tl.dot(w, value.trans(), acc, out_dtype=acc.dtype)


@triton.jit(do_not_specialize=["count", "rows", "pixels"])
def finish_kernel(
    sums,
    unit,
    scale,
    bias,
    y,
    count: "i64",
    rows: "i32",
    pixels: "i32",
    split,
    WEIGHT: tl.constexpr,
    D: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """A program adds the parts of BLOCK outputs, always in the same order, and finishes them."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    at = tl.minimum(at, count - 1)
    total = tl.load(sums + at)
    for part in range(1, split.parts):
        total += tl.load(sums + part * count + at)
    value = finish(total, unit, at // rows // pixels, scale, D, WEIGHT)
    if BIAS:
        value += tl.load(bias + at % rows).to(tl.float32)
    tl.store(y + at, value, mask=inside)
