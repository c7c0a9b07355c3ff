"""Grad_input of Linear and Conv2d: dx = dy W, with W generated where it is used.

As in `forward`, W is the first operand: dx^T = W^T dy^T, a tile of 128 k (or of channels at one tap of the window)
summed over rows. A convolution also sums over its taps.
"""

from functools import lru_cache

import triton
import triton.language as tl
from torch import Tensor

from ...conv_geometry import Window
from ...source import Source
from ..arguments import digit_count
from .arguments import kernel, takes
from .assembly import fenced
from .autotuning import choose
from .expand import resolved
from .fixed_point import sum_of, to_digits
from .forward import COMPACT_COLUMNS, add_product, loaded, pieces_of, touched, uses_digits
from .images import NO_IMAGE, POINTWISE, Image, below, by_pixels, flat, padded, write_images
from .launch import Launch, Machine, at_16_bytes, blocks, free_start, free_starts, machine, normal_table, prepared
from .split_k import split, store_product, workspace
from .tiles import Tile, narrowed, needs_fences, pieces, resident
from .weights import (
    byte_weight_from,
    coded_words,
    integer_weight,
    sign_floats_by_rows,
    sign_quads_by_rows,
    spread_bits,
)
from .words import (
    NORMAL,
    SIGNED_CONSTANT,
    KernelSource,
    aligned,
    compact_words,
    decoded,
    freeze_calls,
    frozen_words,
    full,
    resolved_words,
    sign_words,
    sign_words_at,
    take_words,
    words_of,
)


@kernel("linear_grad_input", when=takes)
def linear_grad_input(dx: Tensor, dy: Tensor, mask: Tensor, scale: Tensor, source: Source) -> None:
    _product(dx, at_16_bytes(dy), mask, scale, source, None, NO_IMAGE)


@kernel("conv2d_grad_input", when=lambda dy, *others: takes(dy) and 0 not in others[-1])
def conv2d_grad_input(
    dx: Tensor, dy: Tensor, mask: Tensor, scale: Tensor, source: Source, window: Window, size: list[int]
) -> None:
    image = Image.of(window, *size)
    with write_images(dx) as pixels:
        if window == POINTWISE and not uses_digits(dy, source):
            _product(pixels, by_pixels(dy), mask, scale, source, None, NO_IMAGE)
        else:
            _product(pixels, flat(dy), mask, scale, source, window, image)


def _product(dx, dy, mask, scale, source, window, image) -> None:
    """Writes ``dx`` [columns, channels] from ``dy`` [B, length]; a Linear's ``window`` is None, its channels are k."""
    columns, channels = dx.shape
    numbers = KernelSource.of(source)
    groups = window.groups if window else 1
    group_channels, group_rows = channels // groups, source.rows // groups

    # A tile is BC weights of one call at one tap. UNALIGNED: 32 weights of two neighbouring words, shared by taps.
    bc = next((size for size in (128, 64, 32) if group_channels % size == 0), 0) if window else 128
    unaligned = bc == 0 or (window is not None and numbers.skipped != 0)
    if unaligned:
        bc = 32
    mask = resolved(mask, source) if unaligned or columns > COMPACT_COLUMNS else at_16_bytes(mask)
    compact = mask.dim() == 1
    starts = free_starts(source, dy.device) if compact else None

    digits = uses_digits(dy, source)
    stored_rows = group_rows
    if group_rows > 16 and (window or not digits):  # a Linear's digits are padded by to_digits
        dy, stored_rows = padded(dy, group_rows)
    if digits:
        d = digit_count(dy)
        operand, unit = to_digits(dy, False, 1 if window else 32)
        plane = operand.stride(0)
        stored_rows = stored_rows if window else operand.shape[2]
    else:
        d, operand, unit, plane = 0, dy, scale, 0

    channel_blocks = numbers.calls if not window else blocks(group_channels, bc)

    numbers = (columns, plane, groups * stored_rows, channels, group_channels, group_rows, stored_rows, channel_blocks)
    kind = (source, window, image, numbers, dy.dtype, d, bc, unaligned, compact, machine(dy.device), dy.device)

    def run(tile: Tile) -> None:
        the_launch, parts, count = _launch(*kind, tile)
        sums, arrived = workspace(parts, count, bc * tile.BM, d, dx)
        rows, calls = (starts.row, starts.call) if compact else (mask, mask)
        the_launch(operand, unit, mask, rows, calls, normal_table(dy.device), scale, dx, sums, arrived)

    run(choose(_key, kind, columns, dy.device, _choices(*kind), run))


def _key(source, window, image, numbers, dtype, d, bc, unaligned, compact, *_) -> tuple:
    """What an autotuned tile is kept for."""
    return ("grad_input", dtype, d, compact, *source[:2], source.weight, *(window or ()))


@prepared
def _choices(source, window, image, numbers, dtype, d, bc, unaligned, compact, machine, device) -> list[Tile]:
    columns, _, _, _, _, group_rows, _, channel_blocks = numbers
    plain, others = window is None and full(source), (window.groups if window else 1) * channel_blocks
    return tiles(columns, group_rows, others, d, source.weight, compact, plain, window is not None, machine)


@prepared
def _launch(
    source, window, image, numbers, dtype, d, bc, unaligned, compact, machine, device, tile
) -> tuple[Launch, int, int]:
    """The launch, into how many parts the sums are split, and the number of tiles."""
    columns, _, _, _, _, group_rows, _, channel_blocks = numbers
    count = (window.groups if window else 1) * channel_blocks * blocks(columns, tile.BM)
    all_steps = image.taps * blocks(group_rows, tile.BN)
    parts, steps = split(all_steps, tile.BN, count, bc * tile.BM, d, tile.programs, machine)
    made = Launch(
        grad_input_kernel,
        count * parts,
        device,
        KernelSource.coded(source),
        image,
        *numbers,
        parts,
        steps,
        WEIGHT=source.weight,
        D=d,
        CONV=window is not None,
        UNALIGNED=unaligned,
        FULL=full(source),
        COMPACT=compact,
        FREEZE_CALLS=freeze_calls(source) if compact else 0,
        SPLIT=parts > 1,
        BC=bc,
        PIECES=tile.pieces,
        FENCE=needs_fences(machine, bc),
        **tile.meta(),
    )
    return made, parts, count


@lru_cache(maxsize=4096)
def tiles(
    columns: int,
    rows: int,
    others: int,
    d: int,
    weight: int,
    compact: bool,
    plain: bool,
    conv: bool,
    machine: Machine,
) -> list[Tile]:
    """The tiles to choose from; the first follows the rule, as in `forward`. BN is the rows of a step, a call each."""
    old = machine.generation < 9
    looked_up = old and d > 2 and weight == NORMAL.value
    bn = min(64 if compact or looked_up else 128, max(32 if d else 16, triton.next_power_of_2(rows)))
    most = 64 if d or compact or not plain or old else 128
    bm = min(most, max(16, triton.next_power_of_2(columns)))
    bm = narrowed(bm, columns, others, machine)
    many = bm > 32 and (d or (old and not compact and not conv))
    warps = 8 if many else 4

    def tile(bn: int, bm: int, warps: int) -> Tile:
        programs = resident(warps, bm, d, weight, compact, plain, old)
        return Tile(bn, bm, warps, 2, programs, pieces(bm, d, machine) if bn >= 64 else 1)

    first = tile(bn, bm, warps)
    choices = [first, first._replace(num_stages=3), first.with_more_registers(), tile(bn, bm, 12 - warps)]
    if bm > 16:
        choices.append(tile(bn, bm // 2, warps))
    if bn > 32:
        choices.append(tile(bn // 2, bm, warps))
    if bm == 128:  # each weight is generated half as often
        choices.append(tile(bn, 256, 8))
    return choices


@triton.jit(do_not_specialize=["columns", "channel_blocks", "parts", "steps"], do_not_specialize_on_alignment=["scale"])
def grad_input_kernel(
    dy,
    unit,
    mask,
    row_starts,
    call_starts,
    table,
    scale,
    out,
    partial_sums,
    arrived,
    source,
    image,
    columns: "i32",
    plane: "i64",
    pitch,
    channels,
    group_channels,
    group_rows,
    stored_rows,
    channel_blocks: "i32",
    parts: "i32",
    steps: "i32",
    WEIGHT: tl.constexpr,
    D: tl.constexpr,
    CONV: tl.constexpr,
    UNALIGNED: tl.constexpr,
    FULL: tl.constexpr,
    COMPACT: tl.constexpr,
    FREEZE_CALLS: tl.constexpr,
    SPLIT: tl.constexpr,
    BC: tl.constexpr,
    PIECES: tl.constexpr,
    FENCE: tl.constexpr,
    BN: tl.constexpr,
    BM: tl.constexpr,
):
    """A program computes BC channels (of a Linear: the 128 k of one call) of dx^T for BM columns.

    A step is BN rows at one tap. It computes one call per row and uses BC of its weights. A register of the operand
    holds one k of four rows in int8, or of two in 16-bit floats: the words of these rows are first combined by bytes or
    halves, and then expanded as in `forward`. UNALIGNED: the BC weights may start anywhere in a word, so each word is
    assembled from two, with one call each.
    """
    source = decoded(source)
    column_blocks = tl.cdiv(columns, BM)
    row_blocks = tl.cdiv(group_rows, BN)
    pid = tl.program_id(0)
    channel_block = pid % channel_blocks
    pid = pid // channel_blocks
    column_block = pid % column_blocks
    pid = pid // column_blocks
    part = pid % parts
    group = pid // parts

    # Columns past the end repeat the last one; they are not stored.
    m = tl.minimum(column_block * BM + tl.arange(0, BM), columns - 1)  # [BM]
    c = channel_block * BC + tl.arange(0, BC)  # [BC], in the group
    if not CONV:
        c -= 32 * source.skipped
    b = m // (image.height * image.width)
    y = m % (image.height * image.width) // image.width + image.padding_h
    x = m % image.width + image.padding_w
    # The output pixel that contributes to a column at a tap is (oy, ox) minus an offset of the tap alone, so that the
    # loop has no division by column. It exists where the remainders equal the tap's.
    oy, left_y = y // image.stride_h, y % image.stride_h
    ox, left_x = x // image.stride_w, x % image.stride_w
    pixel = (b.to(tl.int64) * image.out_height + oy) * image.out_width + ox if CONV else m.to(tl.int64)
    start = pixel * pitch + group * stored_rows  # [BM]

    PLANES: tl.constexpr = max(D, 1)
    acc0 = tl.zeros([BC, BM], tl.int32 if D > 0 else tl.float32)
    acc1 = tl.zeros_like(acc0)
    acc2 = tl.zeros_like(acc0)
    for i in range(steps):
        step = part * steps + i
        tap = tl.minimum(step // row_blocks, image.taps - 1)
        in_group = step % row_blocks * BN + tl.arange(0, BN)
        n = group * group_rows + tl.minimum(in_group, group_rows - 1)  # [BN]

        first_k = tap * group_channels + channel_block * BC
        if UNALIGNED:
            word = first_k // 32 + tl.arange(0, 2)
            keep = aligned(resolved_words(mask, source, n, word), first_k & 31)
            if WEIGHT == SIGNED_CONSTANT:
                coded = coded_words(keep, aligned(sign_words_at(source, n, word), first_k & 31))
            else:
                v = byte_weight_from(source, n, first_k, table, WEIGHT)
        else:
            call = first_k // 128
            here = first_k // BC % (128 // BC)  # which BC weights of the call
            first_word = first_k // 32 - source.skipped
            word = words_of(source, call, FULL) if BC == 128 else first_word + tl.arange(0, BC // 32)
            if COMPACT:
                free, locked = frozen_words(source, n, words_of(source, call, FULL), FREEZE_CALLS)
                row_start, first_free = free_start(row_starts, call_starts, source, n, call, FREEZE_CALLS)
                keep, _ = compact_words(mask, free, locked, row_start + first_free)
                keep = take_words(keep, here, BC // 32)
            else:
                keep = resolved_words(mask, source, n, word, FULL and BC == 128)
            if WEIGHT == SIGNED_CONSTANT:
                coded = coded_words(keep, take_words(sign_words(source, n, call), here, BC // 32))
            else:
                v = integer_weight(source, n, word, keep, table, WEIGHT)
        valid = m >= 0
        moved = 0
        if CONV:
            tap_y = tap // image.kernel_w * image.dilation_h
            tap_x = tap % image.kernel_w * image.dilation_w
            up, left = tap_y // image.stride_h, tap_x // image.stride_w
            valid = below(oy - up, image.out_height) & (left_y == tap_y % image.stride_h)
            valid = valid & below(ox - left, image.out_width) & (left_x == tap_x % image.stride_w)
            moved = tl.cast(up * image.out_width + left, tl.int64) * pitch
        # Masked elements of dy are 0, and so is dy's padding past the group's last row.
        rows = tl.where(step // row_blocks < image.taps, stored_rows, 0)
        if FENCE:  # as in `forward`
            copied = ()
            for j in tl.static_range(PIECES):
                row = step % row_blocks * BN + BN // PIECES * j + tl.arange(0, BN // PIECES)
                offset = (start - moved)[:, None] + row[None, :]
                inside = valid[:, None] & (row < rows)[None, :]
                for digit in tl.static_range(PLANES):
                    copied += (loaded(dy + digit * plane + offset, inside, True),)
            if WEIGHT == SIGNED_CONSTANT:
                coded = fenced(coded, i)
            else:
                keep = fenced(keep, i)
        if WEIGHT == SIGNED_CONSTANT:
            w = sign_floats_by_rows(coded, dy.dtype.element_ty) if D == 0 else sign_quads_by_rows(coded)  # [BC, BN]
        else:
            w = (v * spread_bits(keep).to(tl.int8)).trans()

        weights = pieces_of(w, PIECES)
        for j in tl.static_range(PIECES):
            row = step % row_blocks * BN + BN // PIECES * j + tl.arange(0, BN // PIECES)
            offset = (start - moved)[:, None] + row[None, :]
            inside = valid[:, None] & (row < rows)[None, :]  # [BM, BN / PIECES]
            acc0 = add_product(acc0, weights[j], copied[PLANES * j] if FENCE else loaded(dy + offset, inside, True))
            if D > 1:
                other = copied[PLANES * j + 1] if FENCE else loaded(dy + plane + offset, inside, True)
                acc1 = add_product(acc1, weights[j], other)
            if D > 2:
                other = copied[PLANES * j + 2] if FENCE else loaded(dy + 2 * plane + offset, inside, True)
                acc2 = add_product(acc2, weights[j], other)
        acc0 = touched(acc0, PIECES)

    sums = acc0 if D == 0 else sum_of(acc0, acc1, acc2, D)
    store_product(
        out,
        group * group_channels + c,
        (c >= 0) & (c < group_channels),
        column_block * BM,
        columns,
        channels,
        image.height * image.width,
        sums,
        scale,
        partial_sums,
        arrived,
        (group * column_blocks + column_block) * channel_blocks + channel_block,
        part,
        parts,
        unit,
        scale,
        D,
        WEIGHT,
        False,
        SPLIT,
    )
