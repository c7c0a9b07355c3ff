"""Conv2d with few channels and rows per group, and its grad_input: ``csrc/cuda/depthwise.h``.

With one channel per group it is depthwise. Images are contiguous or channels-last, and read and written as they are.
"""

from math import gcd
from typing import NamedTuple

import torch
from torch import Tensor

from ...conv_geometry import Window, channels_last
from ...source import Source
from .. import registry
from ..arguments import digit_count
from . import launch
from .arguments import ELEMENTS, SIGNED, aligned
from .digits import magnitudes, pieces
from .generator import calls
from .generator import takes as numbered

_THREADS = 256
_RUN = 8  # outputs of a thread, one below the other
_MOST_PER_GROUP = 16  # channels, and rows
_TENSOR_SPEED = 64  # products of a tensor core for one of this kernel
_TILE = 16, {False: 32, True: 16}  # height, and width by whether images are channels-last; neighbours are in memory
_CHANNELS = 32  # of a block, where they are neighbours in memory
_RUNS = 4 * _THREADS  # of a block, if there are as many
_RESIDENTS = 4  # blocks that shared memory has room for, if tiles can be small enough
_WAVES = 4  # of blocks, which go through the images that are left
_STATIC_BYTES = 256  # of shared memory: a table
_LARGEST = {2: 32639, 3: 8355711}  # of numbers in fixed point, by its digits
_MOST_SIZE = 2**15  # of images and windows


class Images(NamedTuple):
    """What a kernel reads and writes.

    Attributes:
        count: images.
        in_size: height and width.
        out_size: height and width.
        window: of the forward.
        channels_last: whether the images are; otherwise they are contiguous.
        reverse: whether it is grad_input, which reads dy and writes dx.
    """

    count: int
    in_size: tuple[int, int]
    out_size: tuple[int, int]
    window: Window
    channels_last: bool
    reverse: bool


class Tile(NamedTuple):
    """What a block computes at once."""

    groups: int
    height: int  # of the output; a multiple of `_RUN` times the rows that a thread's outputs are apart
    width: int


def forward_of(x: Tensor, window: Window) -> Images:
    """The images of a forward."""
    size = tuple(x.shape[2:])
    return Images(len(x), size, window.output_size(*size), window, channels_last(x), False)


def grad_input_of(dy: Tensor, window: Window, size: list[int]) -> Images:
    """The images of a grad_input; ``size``: of dx."""
    return Images(len(dy), tuple(dy.shape[2:]), tuple(size), window, channels_last(dy), True)


def takes(x: Tensor, source: Source, images: Images) -> bool:
    """Whether the kernel computes a product, ``x`` being what it reads.

    It does if groups are narrow, so that a tensor core would take as long, and a tile fits in shared memory.
    """
    window = images.window
    rows, channels = _per_group(source, window)
    if x.dtype not in ELEMENTS or x.numel() == 0 or 0 in images.out_size or not numbered(source):
        return False
    if max(rows, channels) > _MOST_PER_GROUP:
        return False
    if _TENSOR_SPEED * rows * source.fan >= 128 * 128 * calls(source):
        return False
    sizes = *images.in_size, *images.out_size, *_spans(window), *window.stride, *window.padding
    elements = max(x[0].numel(), max(rows, channels) * window.groups * images.out_size[0] * images.out_size[1])
    if max(sizes) >= _MOST_SIZE or elements >= 2**31:
        return False
    return tile_of(source, images, launch.machine(x.device)) is not None


def convolve(
    out: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, images: Images
) -> None:
    """Writes ``out``, in the memory format of ``x``, which is what the kernel reads; bias is float32."""
    if mask.dim() == 1:
        mask = registry.run("expand", mask, source)
    if not images.channels_last:
        x = x.contiguous()
    digits, largest = 0, 0
    if x.dtype == torch.float32:
        x = aligned(x)
        digits = digit_count(x)
        largest = magnitudes(x.permute(0, 2, 3, 1).flatten(1) if images.channels_last else x.flatten(1))
    run = prepared(source, images, x.dtype, digits, launch.machine(x.device))
    launch.enqueue(run, x.device, mask.contiguous(), x, largest, scale, 0 if bias is None else bias, out)


@launch.planned
def tile_of(source: Source, images: Images, machine: launch.Machine) -> Tile | None:
    """The tile of a block, so small that several blocks fit in shared memory if there is one; None if none fits."""
    unit = _RUN * _steps(images)[1]  # rows
    height, width = images.out_size
    tile_h = min(_TILE[0], height)
    tile = Tile(1, launch.blocks(tile_h, unit) * unit, min(_TILE[1][images.channels_last], width))
    runs = tile.height // _RUN * tile.width
    most = max(_per_group(source, images.window))
    wanted = launch.blocks(_CHANNELS if images.channels_last else launch.blocks(_RUNS, runs), most)
    tile = tile._replace(groups=min(wanted, images.window.groups))
    while _shared(source, images, tile) > machine.shared // _RESIDENTS:
        if tile.groups * most > 8:
            tile = tile._replace(groups=launch.blocks(tile.groups, 2))
        elif tile.height > unit:
            tile = tile._replace(height=launch.blocks(tile.height // unit, 2) * unit)
        elif tile.width > 8:
            tile = tile._replace(width=launch.blocks(tile.width, 2))
        elif tile.groups > 1:
            tile = tile._replace(groups=launch.blocks(tile.groups, 2))
        else:
            return tile if _shared(source, images, tile) + _STATIC_BYTES <= machine.shared else None
    return tile


@launch.planned
def prepared(source: Source, images: Images, dtype: torch.dtype, digits: int, machine: launch.Machine) -> launch.Launch:
    """The launch; ``digits`` of fixed point, 0 for 16-bit types."""
    window, groups, reverse = images.window, images.window.groups, images.reverse
    rows, channels = _per_group(source, window)
    inputs, outputs = (rows, channels) if reverse else (channels, rows)
    tile = tile_of(source, images, machine)
    in_h, in_w = _in_tile(images, tile)
    every, apart = _steps(images)
    stride, up = ((1, 1), window.stride) if reverse else (window.stride, (1, 1))
    padding = window.padding
    if reverse:
        padding = tuple(span - 1 - p for span, p in zip(_spans(window), padding, strict=True))

    tiles = [launch.blocks(size, of) for size, of in zip(images.out_size, tile[1:], strict=True)]
    group_blocks = launch.blocks(groups, tile.groups)
    at_once = tiles[0] * tiles[1] * group_blocks
    resident = machine.processors * max(1, min(8, machine.shared // _shared(source, images, tile)))
    block_images = max(1, images.count * at_once // (_WAVES * resident))
    image_blocks = launch.blocks(images.count, block_images)

    def strides(per_group: int, size: tuple[int, int]) -> tuple[int, int, int]:
        """Elements from channel to channel, from pixel to pixel, and from image to image."""
        pixels = size[0] * size[1]
        return *((1, groups * per_group) if images.channels_last else (pixels, 1)), groups * per_group * pixels

    in_channel, in_pixel, in_image = strides(inputs, images.in_size)
    out_channel, out_pixel, out_image = strides(outputs, images.out_size)
    runs = tile.height // _RUN * tile.width
    values = {
        "generator": source,
        "in_image": in_image,
        "out_image": out_image,
        "in_channel": in_channel,
        "in_pixel": in_pixel,
        "out_channel": out_channel,
        "out_pixel": out_pixel,
        "channels_last": images.channels_last,
        "reverse": reverse,
        "digits": digits,
        "pieces": pieces(in_image),
        "images": images.count,
        "block_images": block_images,
        "groups": groups,
        "block_groups": tile.groups,
        "group_blocks": group_blocks,
        "tiles_h": tiles[0],
        "tiles_w": tiles[1],
        "fan": source.fan,
        "group_rows": rows,
        "group_channels": channels,
        "group_out": outputs,
        "group_in": inputs,
        "in_height": images.in_size[0],
        "in_width": images.in_size[1],
        "out_height": images.out_size[0],
        "out_width": images.out_size[1],
        "kernel_h": window.kernel_h,
        "kernel_w": window.kernel_w,
        "stride_h": stride[0],
        "stride_w": stride[1],
        "padding_h": padding[0],
        "padding_w": padding[1],
        "dilation_h": window.dilation_h,
        "dilation_w": window.dilation_w,
        "up_h": up[0],
        "up_w": up[1],
        "tile_h": tile.height,
        "tile_w": tile.width,
        "tile_pixels": in_h * in_w,
        "tile_row": in_w,
        "every": every,
        "spacing": stride[0] * apart,
        "apart": apart,
        "in_lanes_log": _lanes_log(images, tile.groups * inputs, in_h * in_w),
        "out_lanes_log": _lanes_log(images, tile.groups * outputs, runs),
    }
    return launch.Launch(
        file="depthwise",
        kernel=f"slt_depthwise_{_sums(source, dtype, digits, window.kernel_h * window.kernel_w * inputs)}",
        arguments="Depthwise",
        blocks=at_once * image_blocks,
        threads=_THREADS,
        shared=_shared(source, images, tile),
        values=values,
        later=["mask", "in", "largest", "scale", "bias", "out"],
    )


def _per_group(source: Source, window: Window) -> tuple[int, int]:
    """Rows and channels of a group."""
    return source.rows // window.groups, source.fan // (window.kernel_h * window.kernel_w)


def _spans(window: Window) -> tuple[int, int]:
    """Pixels from the first tap to the last, in height and width."""
    return tuple(d * (k - 1) + 1 for d, k in zip(window[6:8], window.kernel, strict=True))


def _steps(images: Images) -> tuple[int, int]:
    """How many rows apart taps are that read the same values, and how many rows apart a thread's outputs are."""
    stride, dilation = 1 if images.reverse else images.window.stride_h, images.window.dilation_h
    common = gcd(stride, dilation)
    return stride // common, dilation // common


def _in_tile(images: Images, tile: Tile) -> tuple[int, int]:
    """Height and width of the input that a tile reads."""
    stride = (1, 1) if images.reverse else images.window.stride
    return tuple(s * (size - 1) + span for s, size, span in zip(stride, tile[1:], _spans(images.window), strict=True))


def _shared(source: Source, images: Images, tile: Tile) -> int:
    """The shared memory of a block: where pixels are, weights, and the input of a tile."""
    rows, channels = _per_group(source, images.window)
    in_h, in_w = _in_tile(images, tile)
    inputs = rows if images.reverse else channels
    return 4 * (in_h * in_w * (1 + tile.groups * inputs) + tile.groups * rows * source.fan)


def _lanes_log(images: Images, channels: int, pixels: int) -> int:
    """How many threads have neighbours in memory, as a power of two: so that few threads have nothing to do."""
    near, far = (channels, pixels) if images.channels_last else (pixels, channels)
    least = min(near, 32)

    def rounds(log: int) -> int:
        return launch.blocks(near, 1 << log) * launch.blocks(far, _THREADS >> log)

    return min((log for log in range(9) if 1 << log >= least), key=rounds)


def _sums(source: Source, dtype: torch.dtype, digits: int, terms: int) -> str:
    """The type in the kernel's name: of exact sums of that many terms, or of 16-bit inputs, whose sums are float32."""
    if digits == 0:
        return {torch.bfloat16: "bfloat16", torch.float16: "float16"}[dtype]
    most = 1 if source.weight == SIGNED else 127
    return "int32" if terms * most * _LARGEST[digits] < 2**31 else "int64"
