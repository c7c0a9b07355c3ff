"""Grad_input of Linear and Conv2d: dx = dy W, with W made where it is used.

As in `forward`, W is the first operand: dx^T = W^T dy^T, a tile of 128 k (or of channels at one tap of a window)
summed over rows. A convolution sums over its taps as well.
"""

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
    bit_of,
    coded_words,
    compact_words,
    frozen_words,
    full,
    integer_weight,
    integer_weight_at,
    part_of,
    resolved_words,
    sign_floats_by_rows,
    sign_quads_by_rows,
    sign_words,
    spread_bits,
    words_of,
)
from .digits import digits_of, finish, sum_of, to_digits
from .expand import resolved
from .forward import add_product, finish_sums, split_for, uses_digits
from .images import NO_IMAGE, Image, flat, images
from .launch import blocks, free_start, free_starts, generation, launch, normal_table


def linear_grad_input(dy: Tensor, mask: Tensor, scale: Tensor, source: Source) -> Tensor:
    """float64 goes through the reference."""
    if dy.dtype == torch.float64 or dy.numel() == 0:
        return reference.linear_grad_input(dy, mask, scale, source)
    return _product(dy.contiguous(), len(dy), mask, scale, source, None, NO_IMAGE, source.fan)


def conv2d_grad_input(
    dy: Tensor, mask: Tensor, scale: Tensor, source: Source, window: Window, size: list[int]
) -> Tensor:
    """float64 goes through the reference."""
    if dy.dtype == torch.float64 or dy.numel() == 0 or 0 in size:
        return reference.conv2d_grad_input(dy, mask, scale, source, window, size)
    image = Image.of(window, *size)
    channels = source.fan // (window.kernel_h * window.kernel_w) * window.groups
    columns = len(dy) * size[0] * size[1]
    dx = _product(flat(dy), columns, mask, scale, source, window, image, channels)
    return images(dx, *size, reference.channels_last(dy))


def _product(dy, columns, mask, scale, source, window, image, channels) -> Tensor:
    """``dy`` [B, length] to dx [columns, channels]; ``window`` is None for a Linear, whose channels are its k."""
    layer = Layer.of(source)
    groups, taps = (window.groups, window.kernel_h * window.kernel_w) if window else (1, 1)
    group_channels, group_rows = channels // groups, source.rows // groups
    dx = torch.empty(columns, channels, dtype=dy.dtype, device=dy.device)

    # A tile is BC weights of one call at one tap, or else single weights: where taps share words, and in small layers.
    bc = next((size for size in (128, 64, 32) if group_channels % size == 0), 0) if window else 128
    single = bc == 0 or (window is not None and layer.skipped != 0)
    bc = bc or min(32, max(16, triton.next_power_of_2(group_channels)))
    if single or bc < 128:
        mask = resolved(mask, source)  # a bit a weight for a moment: only whole calls know where their bits start
    compact = mask.dim() == 1
    starts = free_starts(source, dy.device) if compact else None

    if uses_digits(dy, source):
        d = digits_of(dy)
        operand, unit = to_digits(dy, False, 1 if window else 32)
        pitch = source.rows if window else operand.shape[2]
        plane = operand.stride(0)
    else:
        d, operand, unit, pitch, plane = 0, dy, scale, source.rows, 0

    tile = _tile(columns, group_rows, d, compact, window is not None, dy.device)
    channel_blocks = layer.calls if not window else blocks(group_channels, bc)
    row_blocks = blocks(group_rows, tile["BN"])
    programs = groups * channel_blocks * blocks(columns, tile["BM"])
    split = split_for(taps * row_blocks, programs, dy.device, d, tile["BN"])
    sums = dx
    if split.parts > 1:
        sums = torch.empty(split.parts, *dx.shape, dtype=torch.int64 if d else torch.float32, device=dy.device)
    launch(
        grad_input_kernel,
        programs * split.parts,
        dy.device,
        operand,
        unit,
        mask,
        starts.row if compact else mask,
        starts.call if compact else mask,
        normal_table(dy.device),
        scale,
        sums,
        layer,
        image,
        columns,
        plane,
        pitch,
        channels,
        group_channels,
        group_rows,
        channel_blocks,
        split,
        WEIGHT=source.weight,
        D=d,
        CONV=window is not None,
        SINGLE=single,
        FULL=full(source),
        COMPACT=compact,
        SPLIT=split.parts > 1,
        BC=bc,
        **tile,
    )
    if split.parts > 1:
        finish_sums(sums, unit, scale, None, dx, image.height * image.width, split, source.weight, d)
    return dx


def _tile(columns: int, rows: int, d: int, compact: bool, conv: bool, device: torch.device) -> dict[str, int]:
    """Rows of a step, a call each, and columns of a program's tile: as in `forward`, what the registers hold."""
    bn = min(64 if compact else 128, max(32 if d else 16, triton.next_power_of_2(rows)))
    most = 64 if d or compact or conv or generation(device) < 9 else 128
    bm = min(most, max(16, triton.next_power_of_2(columns)))
    return {"BN": bn, "BM": bm, "num_warps": 8 if d and bm > 32 else 4, "num_stages": 2}


@triton.jit(do_not_specialize=["columns", "channel_blocks"])
def grad_input_kernel(
    dy,
    unit,
    mask,
    row_starts,
    call_starts,
    table,
    scale,
    out,
    layer,
    image,
    columns: "i32",
    plane: "i64",
    pitch,
    channels,
    group_channels,
    group_rows,
    channel_blocks: "i32",
    split,
    WEIGHT: tl.constexpr,
    D: tl.constexpr,
    CONV: tl.constexpr,
    SINGLE: tl.constexpr,
    FULL: tl.constexpr,
    COMPACT: tl.constexpr,
    SPLIT: tl.constexpr,
    BC: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
):
    """A program makes BC channels (of a Linear: the 128 k of one call) of dx^T for BM columns.

    A step is BN rows at one tap; it makes one call a row, of which it uses BC weights. Four rows of one k are
    neighbours in an int8 operand and two in a 16-bit one: the words of so many rows are put together by bytes or
    halves, and then expanded as in `forward`. SINGLE: a weight is a call on its own.
    """
    column_blocks = tl.cdiv(columns, BM)
    row_blocks = tl.cdiv(group_rows, BN)
    pid = tl.program_id(0)
    channel_block = pid % channel_blocks
    pid = pid // channel_blocks
    column_block = pid % column_blocks
    pid = pid // column_blocks
    part = pid % split.parts
    group = pid // split.parts

    column = column_block * BM + tl.arange(0, BM)
    m = tl.minimum(column, columns - 1)  # [BM]; past the end: the last one once more, and not stored
    c = channel_block * BC + tl.arange(0, BC)  # [BC], in the group
    if not CONV:
        c -= 32 * layer.skipped
    b = m // (image.height * image.width)
    y = m % (image.height * image.width) // image.width + image.padding_h
    x = m % image.width + image.padding_w

    acc0 = tl.zeros([BC, BM], tl.int32 if D > 0 else tl.float32)
    acc1 = tl.zeros_like(acc0)
    acc2 = tl.zeros_like(acc0)
    for i in range(split.steps):
        step = part * split.steps + i
        tap = tl.minimum(step // row_blocks, image.taps - 1)
        in_group = step % row_blocks * BN + tl.arange(0, BN)
        inside = in_group < tl.where(step // row_blocks < image.taps, group_rows, 0)  # what is not meets a dy of 0
        n = group * group_rows + tl.minimum(in_group, group_rows - 1)  # [BN]

        if SINGLE:
            k = tap * group_channels + c
            there = inside[None, :] & (c < group_channels)[:, None]
            at = n.to(tl.int64)[None, :] * layer.words + (k >> 5)[:, None]
            keep = tl.load(mask + at, mask=there, other=0) >> bit_of(k)[:, None] & 1
            w = integer_weight_at(layer, n[None, :], k[:, None], table, WEIGHT) * keep.to(tl.int8)  # [BC, BN]
            if WEIGHT == SIGNED_CONSTANT:
                w = w * 64 if D > 0 else (w * 2).to(dy.dtype.element_ty)
        else:
            first_k = tap * group_channels + channel_block * BC
            call = first_k // 128
            word = words_of(layer, call, FULL) if BC == 128 else first_k // 32 - layer.skipped + tl.arange(0, BC // 32)
            if COMPACT:
                free, locked = frozen_words(layer, n, word)
                keep, _ = compact_words(mask, free, locked, free_start(row_starts, call_starts, layer, n, call))
            else:
                keep = resolved_words(mask, layer, n, word, FULL and BC == 128)
            if WEIGHT == SIGNED_CONSTANT:
                sign = part_of(sign_words(layer, n, call), first_k // BC % (128 // BC), BC // 32)
                coded = coded_words(keep, sign)
                w = sign_floats_by_rows(coded, dy.dtype.element_ty) if D == 0 else sign_quads_by_rows(coded)  # [BC, BN]
            else:
                w = (integer_weight(layer, n, word, keep, table, WEIGHT) * spread_bits(keep).to(tl.int8)).trans()

        if CONV:
            oy = y - tap // image.kernel_w * image.dilation_h
            ox = x - tap % image.kernel_w * image.dilation_w
            there = (oy >= 0) & (oy % image.stride_h == 0) & (ox >= 0) & (ox % image.stride_w == 0)
            oy = oy // image.stride_h
            ox = ox // image.stride_w
            there = there & (oy < image.out_height) & (ox < image.out_width)
            pixel = (b.to(tl.int64) * image.out_height + oy) * image.out_width + ox
        else:
            there = m >= 0
            pixel = m.to(tl.int64)
        offset = (pixel * pitch)[:, None] + (group * group_rows + in_group)[None, :]
        there = there[:, None] & inside[None, :]  # [BM, BN]
        acc0 = add_product(acc0, w, dy + offset, there, True)
        if D > 1:
            acc1 = add_product(acc1, w, dy + plane + offset, there, True)
        if D > 2:
            acc2 = add_product(acc2, w, dy + 2 * plane + offset, there, True)

    sums = acc0 if D == 0 else sum_of(acc0, acc1, acc2, D)
    inside = ((c >= 0) & (c < group_channels))[:, None] & (column < columns)[None, :]
    at = column.to(tl.int64)[None, :] * channels + (group * group_channels + c)[:, None]
    if SPLIT:
        tl.store(out + tl.cast(part, tl.int64) * columns * channels + at, sums, mask=inside)
    else:
        tl.store(out + at, finish(sums, unit, b[None, :], scale, D, WEIGHT), mask=inside)
