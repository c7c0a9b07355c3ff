"""Grad_input of Linear and Conv2d: ``csrc/cuda/grad_input.h``.

Images are channels-last, and a column is a pixel of dx. A Linear has images of one pixel.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...conv_geometry import Window, channels_last
from ...source import Source
from .. import registry
from ..arguments import digit_count
from . import depthwise, launch
from .arguments import ELEMENTS, SIGNED, SUMMANDS, aligned, padded
from .digits import to_digits
from .generator import calls
from .generator import takes as numbered
from .product import uses_digits

_CALL, _STEP = 128, 128  # k, and summands of a step: csrc/cuda/grad_input_weights.h
_THREADS, _PRODUCERS = 256, 128  # those that multiply, and those that others of sm_90a have besides
_MOST_STAGES = 4  # of a ring: csrc/cuda/ring.h
_LEAST_STEPS = 4  # of a part of the summands
_COPIES = ("rows", "pieces", "values")  # `Copy` of `GradInput`
_MOST_SIZE, _MOST_STRIDE = 2**19, 2**10  # of padded images and windows: `GradPixel` of csrc/cuda/grad_input.h


class Images(NamedTuple):
    """The geometry of dx and dy.

    Attributes:
        count: images.
        size: height and width of those of dx.
        window: of a Linear, the one of a pixel.
        channels_last: whether dx is.
    """

    count: int
    size: tuple[int, int]
    window: Window
    channels_last: bool

    @property
    def vectors(self) -> bool:
        """Whether they are the vectors of a Linear."""
        return self.size == (1, 1) and self.window == Window(1, 1)


class Kernel(NamedTuple):
    """A kernel of ``csrc/cuda/grad_input_*.cu``."""

    file: str
    name: str
    k: int  # of a tile
    columns: int
    stage_bytes: int  # of dy
    weight_bytes: int  # of a step
    residents: int  # blocks of a multiprocessor
    warpgroups: bool  # whether blocks have producers, and go through tiles

    def shared(self, stages: int) -> int:
        """The shared memory of a block: `GradShared` of csrc/cuda/grad_input.h, dy, and the weights of some steps."""
        if self.warpgroups:  # the weights are in the stages
            return 16 * self.columns + 352 + stages * (self.stage_bytes + launch.blocks(self.weight_bytes, 1024) * 1024)
        return 16 * self.columns + 256 + stages * self.stage_bytes + 2 * self.weight_bytes

    def stages(self, machine: launch.Machine) -> int:
        """Four of a ring, or three, which it needs; else three, or two."""
        most = _MOST_STAGES if self.warpgroups else 3
        return most if self.residents * self.shared(most) <= machine.shared else most - 1


def _vectors(dy: Tensor) -> Images:
    return Images(len(dy), (1, 1), Window(1, 1), True)


def _images(dy: Tensor, window: Window, size: list[int]) -> Images:
    return Images(len(dy), tuple(size), window, channels_last(dy))


def takes(dy: Tensor, source: Source, images: Images) -> bool:
    """Whether there is a kernel for the product."""
    if dy.dtype not in ELEMENTS or 0 in dy.shape or 0 in images.size or not numbered(source):
        return False
    columns, window = images.count * images.size[0] * images.size[1], images.window
    for size, padding, kernel, dilation in zip(images.size, window.padding, window.kernel, window[6:8], strict=True):
        if max(size + 2 * padding, kernel * dilation) > _MOST_SIZE:
            return False
    if max(window.stride) > _MOST_STRIDE:
        return False
    summands = source.rows * window.kernel_h * window.kernel_w
    tiles = launch.blocks(columns, 64) * window.groups * (2 * calls(source) + 1)
    adding = columns * launch.blocks(source.fan * window.groups, _THREADS)
    return max(columns, summands, tiles, adding, source.fan * window.groups) < 2**31 - _STEP


@launch.kernel("linear_grad_input", when=lambda dy, mask, scale, source: takes(dy, source, _vectors(dy)))
def linear_grad_input(dx: Tensor, dy: Tensor, mask: Tensor, scale: Tensor, source: Source) -> None:
    _grad_input(dx, dy.detach().contiguous(), mask, scale, source, _vectors(dy))


@launch.kernel(
    "conv2d_grad_input",
    when=lambda dy, mask, scale, source, window, size: depthwise.takes(
        dy, source, depthwise.grad_input_of(dy, window, size)
    ),
)
def conv2d_grad_input_narrow(
    dx: Tensor, dy: Tensor, mask: Tensor, scale: Tensor, source: Source, window: Window, size: list[int]
) -> None:
    depthwise.convolve(dx, dy.detach(), mask, scale, None, source, depthwise.grad_input_of(dy, window, size))


@launch.kernel(
    "conv2d_grad_input",
    when=lambda dy, mask, scale, source, window, size: takes(dy, source, _images(dy, window, size)),
)
def conv2d_grad_input(
    dx: Tensor, dy: Tensor, mask: Tensor, scale: Tensor, source: Source, window: Window, size: list[int]
) -> None:
    flat = dy.detach().contiguous(memory_format=torch.channels_last).permute(0, 2, 3, 1).flatten(1)
    _grad_input(dx, flat, mask, scale, source, _images(dy, window, size))


def _grad_input(dx: Tensor, dy: Tensor, mask: Tensor, scale: Tensor, source: Source, images: Images) -> None:
    """Writes ``dx`` from ``dy`` [images, height * width * rows], contiguous."""
    if mask.dim() == 1:
        mask = registry.run("expand", mask, source)
    dy, digits, power = aligned(dy), 0, 0
    if uses_digits(dy.dtype, source):
        dy, power = to_digits(dy, digit_count(dy))
        digits = len(dy)
    elif images.vectors:
        dy = padded(dy, 8)
    run, add, parts = prepared(source, images, dx.dtype, digits, dy.shape[-1], launch.machine(dx.device))
    sums = 0
    if parts > 1:
        sums = launch.workspace((parts, dx.numel()), torch.int64 if digits else torch.float32, dx.device)
    values = aligned(mask.contiguous()), dy, power, scale, dx, sums
    launch.enqueue(run, dx.device, *values)
    if parts > 1:
        launch.enqueue(add, dx.device, *values)


def kernel(
    dtype: torch.dtype, source: Source, digits: int, channels: int, columns: int, tiles: int, machine: launch.Machine
) -> Kernel:
    """The kernel for a product; ``channels`` of a group, and ``tiles`` of 128 k beside each other."""
    if machine.capability == 90:  # with products of a warpgroup, which have more columns
        k = 64 if channels <= 64 else _CALL
        if digits:
            columns = 128 if digits == 2 or k == 64 else 64
        else:
            columns = 256 if k == 64 or tiles * launch.blocks(columns, 256) >= machine.processors else 128
        return _kernel(dtype, source, digits, k, columns, True)
    if channels <= 64:
        narrow = _kernel(dtype, source, digits, 64, 128, False)
        if narrow.shared(2) <= machine.shared:
            return narrow
    wide = digits == 0 and tiles * launch.blocks(columns, 128) >= machine.processors
    return _kernel(dtype, source, digits, _CALL, 128 if wide else 64, False)


def _kernel(dtype: torch.dtype, source: Source, digits: int, k: int, columns: int, warpgroups: bool) -> Kernel:
    shape = f"{k}_{columns}"
    coded_bytes = (40 if warpgroups else 36) * k  # `CodedHalves` or `CodedWords` of csrc/cuda/grad_input_operands.h
    if digits == 0:
        name = f"slt_grad_input_{str(dtype).removeprefix('torch.')}_{shape}"
        residents = 1 if warpgroups or k == columns else 2  # by their registers
        return Kernel("grad_input_floats", name, k, columns, 256 * columns, coded_bytes, residents, warpgroups)
    kind, weight_bytes = ("signs", coded_bytes) if source.weight == SIGNED else ("bytes", 128 * _STEP)
    name = f"slt_grad_input_{kind}_{digits}_{shape}"
    return Kernel("grad_input_digits", name, k, columns, digits * 128 * columns, weight_bytes, 1, warpgroups)


@launch.planned
def prepared(
    source: Source, images: Images, dtype: torch.dtype, digits: int, pitch: int, machine: launch.Machine
) -> tuple[launch.Launch, launch.Launch | None, int]:
    """The launch, one that adds the parts, and their number. ``pitch``: values of dy from image to image."""
    window, (height, width) = images.window, images.size
    taps, groups, pixels = window.kernel_h * window.kernel_w, window.groups, height * width
    columns, channels, rows = images.count * pixels, source.fan // taps, source.rows // groups
    out_height, out_width = window.output_size(height, width)
    chosen = kernel(dtype, source, digits, channels, columns, groups * launch.blocks(channels, _CALL), machine)

    # A tile of 128 k is a call where each tap starts with one. The channels of a single tap may start inside a call.
    skipped = source.first_word % 4 * 32
    lead = skipped if taps == 1 and chosen.k == _CALL else 0
    whole_calls = chosen.k == _CALL and (taps == 1 or (channels % _CALL == 0 and skipped == 0))
    channel_tiles, column_tiles = launch.blocks(channels + lead, chosen.k), launch.blocks(columns, chosen.columns)
    tiles = groups * channel_tiles * column_tiles
    steps = launch.blocks(taps * rows, _STEP)
    least = launch.blocks(steps * _STEP, SUMMANDS) if digits else 1
    parts = max(least, min(machine.processors // tiles, steps // _LEAST_STEPS), 1)
    part_steps = launch.blocks(steps, parts)
    parts = launch.blocks(steps, part_steps)

    stages = chosen.stages(machine)
    values = {
        "generator": source,
        "plane": images.count * pitch,
        "image_pitch": pitch,
        "dx_channel": 1 if images.channels_last else pixels,
        "dx_pixel": groups * channels if images.channels_last else 1,
        "dx_image": groups * channels * pixels,
        "pixels": pixels,
        "width": width,
        "rows": rows,
        "kernel_w": window.kernel_w,
        "stride_h": window.stride_h,
        "stride_w": window.stride_w,
        "columns": columns,
        "channels": channels,
        "all_channels": groups * channels,
        "channel_tiles": channel_tiles,
        "column_tiles": column_tiles,
        "parts": parts,
        "part_steps": part_steps,
        "summands": taps * rows,
        "lead": lead,
        "out_height": out_height,
        "out_width": out_width,
        "pitch": pitch if images.vectors else source.rows,
        "padding_h": window.padding_h,
        "padding_w": window.padding_w,
        "dilation_h": window.dilation_h,
        "dilation_w": window.dilation_w,
        "copy": _COPIES.index(copy_of(source, images, 16 if digits else 8)),
        "whole_calls": whole_calls,
        "aligned_words": source.words % 4 == 0 and source.first_word % 4 == 0,
        "element": ELEMENTS[dtype],
        "quads": images.channels_last and channels % 4 == 0,
        "stages": stages,
        "tiles": tiles * parts,
    }

    def launched(kernel: str, blocks: int, threads: int, shared: int) -> launch.Launch:
        return launch.Launch(
            file=chosen.file,
            kernel=kernel,
            arguments="GradInput",
            blocks=blocks,
            threads=threads,
            shared=shared,
            values=values,
            later=["mask", "dy", "power", "scale", "dx", "sums"],
        )

    blocks, threads = tiles * parts, _THREADS
    if chosen.warpgroups:
        blocks, threads = min(blocks, machine.processors), threads + _PRODUCERS
    run = launched(chosen.name, blocks, threads, chosen.shared(stages))
    add = None
    if parts > 1:
        name = f"slt_grad_input_add_{'digits' if digits else 'floats'}"
        add = launched(name, columns * launch.blocks(groups * channels, _THREADS), _THREADS, 0)
    return run, add, parts


def copy_of(source: Source, images: Images, piece: int) -> str:
    """How dy is read, where 16 bytes are that many values."""
    if images.vectors:  # padded to whole pieces
        return "rows"
    if source.rows // images.window.groups % piece:
        return "values"
    return "rows" if images.window._replace(groups=1) == Window(1, 1) else "pieces"
