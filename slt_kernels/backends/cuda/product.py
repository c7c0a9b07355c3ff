"""The forward product of Linear and Conv2d for many columns: ``csrc/cuda/product.h``.

Images are channels-last, and a column is an output pixel. A Linear has images of one pixel.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...conv_geometry import Window
from ...source import Source
from .. import registry
from ..arguments import digit_count
from . import launch
from .arguments import ELEMENTS, SIGNED, SUMMANDS, aligned, padded
from .digits import to_digits
from .free_starts import starts_for
from .generator import calls
from .generator import takes as numbered

_ROWS, _FEW_ROWS = 128, 64  # of a tile: ROWS of csrc/cuda/product_weights.h
_THREADS = 384
_HEADER = 5 * 1024  # `ProductShared` of csrc/cuda/product.h
_MOST_STAGES = 4  # with wgmma, kernels need three; else two
_ADD_THREADS = 256
_LEAST_CALLS = 8  # of a part of k
# With three digits, products of a step (768 cycles of tensor cores on an H100) are shorter than making its words from a
# compact mask (1030 of the schedulers). With so many tiles of columns, expanding the mask before takes as long.
_COMPACT_TILES = 4
_LOADS = ("rows", "pixels", "values")  # `Load` of `Product`


class Images(NamedTuple):
    """The geometry of a product.

    Attributes:
        count: images.
        shape: channels, height and width of each.
        window: of a Linear, that of one pixel: Window(1, 1).
        channels_last: whether the output is.
    """

    count: int
    shape: tuple[int, int, int]
    window: Window
    channels_last: bool

    @property
    def out_size(self) -> tuple[int, int]:
        return self.window.output_size(*self.shape[1:])

    @property
    def pixels(self) -> int:
        """Output pixels of an image."""
        return self.out_size[0] * self.out_size[1]

    @property
    def group_channels(self) -> int:
        return self.shape[0] // self.window.groups

    @property
    def vectors(self) -> bool:
        """Whether they are the vectors of a Linear."""
        return self.shape[1:] == (1, 1) and self.window == Window(1, 1)


class Kernel(NamedTuple):
    """A kernel of ``csrc/cuda/product_*.cu``."""

    file: str
    name: str
    rows: int  # of a tile
    columns: int
    stage_bytes: int

    def stages(self, machine: launch.Machine) -> int:
        return min(_MOST_STAGES, (machine.shared - _HEADER) // self.stage_bytes)


def takes(x: Tensor, images: Images, source: Source) -> bool:
    """Whether there is a kernel for the product."""
    columns = images.count * images.pixels
    if x.dtype not in ELEMENTS or x.numel() == 0 or not numbered(source):
        return False
    row_blocks = launch.blocks(source.rows, 32)
    return columns * row_blocks < 2**31 and columns < 2**31 and images.shape[0] * images.window.groups < 2**31


def forward(
    y: Tensor, x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, images: Images
) -> None:
    """Writes ``y`` from ``x`` [images, height * width * channels], contiguous; bias is float32."""
    machine, digits = launch.machine(x.device), digit_count(x) if uses_digits(x.dtype, source) else 0
    if mask.dim() == 1 and not makes_words(x.dtype, source, digits, images, machine):
        mask = registry.run("expand", mask, source)
    x, power = aligned(x), 0
    if digits:
        x, power = to_digits(x, digits)
        pitch = x.shape[2]
    else:
        if images.vectors:
            x = padded(x, 8)
        pitch = x.shape[1]
    run, add, parts = prepared(source, images, y.dtype, digits, pitch, mask.dim() == 1, machine)
    sums = 0
    if parts > 1:
        shape = parts, images.count * images.pixels, source.rows
        sums = launch.workspace(shape, torch.int64 if digits else torch.float32, x.device)
    starts, bias = starts_for(mask, source), 0 if bias is None else bias
    values = *starts, aligned(mask), mask.numel(), x, power, scale, bias, y, sums
    launch.enqueue(run, x.device, *values)
    if parts > 1:
        launch.enqueue(add, x.device, *values)


def uses_digits(dtype: torch.dtype, source: Source) -> bool:
    """Whether products are exact sums of integers: all except those of 16-bit inputs with signed weights."""
    return dtype == torch.float32 or source.weight != SIGNED


def makes_words(dtype: torch.dtype, source: Source, digits: int, images: Images, machine: launch.Machine) -> bool:
    """Whether the product makes the words of a compact mask itself; otherwise it is expanded before."""
    chosen = kernel(dtype, source, digits, images, machine)
    if source.weight != SIGNED or chosen.rows == _FEW_ROWS:
        return False
    return digits < 3 or launch.blocks(images.count * images.pixels, chosen.columns) <= _COMPACT_TILES


def kernel(dtype: torch.dtype, source: Source, digits: int, images: Images, machine: launch.Machine) -> Kernel:
    """The kernel for a product, apart from the form of its mask."""
    wide = machine.capability == 90  # products of a warpgroup have more columns
    columns, signed = images.count * images.pixels, source.weight == SIGNED
    width = {0: 128, 2: 128 if wide else 64, 3: 64 if wide else 48}[digits]
    if digits == 0:
        file, name, row_bytes = "product_floats", {torch.bfloat16: "bfloat16", torch.float16: "float16"}[dtype], 64
    else:
        kind, row_bytes = ("signs", 32) if signed else ("bytes", 128)
        file, name = "product_digits", f"{kind}_{digits}"

    def tile(rows: int, width: int) -> Kernel:
        few = "_64_rows" if rows == _FEW_ROWS else ""
        stage_bytes = (digits or 2) * width * 128 + row_bytes * rows
        return Kernel(file, f"slt_product_{name}_{width}{few}", rows, width, stage_bytes)

    few = tile(_FEW_ROWS, 2 * width)
    enough = few.stages(machine) >= (3 if wide else 2)
    if signed and source.rows // images.window.groups <= _FEW_ROWS and columns > width and enough:
        return few
    if digits == 0 and wide and fills(source, columns, 256, machine):
        width = 256
    return tile(_ROWS, width)


def fills(source: Source, columns: int, width: int, machine: launch.Machine) -> bool:
    """Whether there is a tile for each multiprocessor."""
    return launch.blocks(source.rows, _ROWS) * launch.blocks(columns, width) >= machine.processors


def parts_of(source: Source, tiles: int, digits: int, machine: launch.Machine) -> int:
    """How many parts k is cut into: so that int32 sums hold them, and that few tiles fill the device."""
    steps = calls(source)
    least = launch.blocks(steps * 128, SUMMANDS) if digits else 1
    filling = min(machine.processors // tiles, steps // _LEAST_CALLS)
    return max(least, filling, 1)


@launch.planned
def prepared(
    source: Source,
    images: Images,
    dtype: torch.dtype,
    digits: int,
    pitch: int,
    compact: bool,
    machine: launch.Machine,
) -> tuple[launch.Launch, launch.Launch | None, int]:
    """The launch, one that adds the parts of k, and their number.

    Args:
        pitch: values of x from image to image.
        compact: whether the mask is.
    """
    channels, height, width = images.shape
    window, pixels = images.window, images.pixels
    columns, group_rows = images.count * pixels, source.rows // window.groups
    chosen = kernel(dtype, source, digits, images, machine)
    row_tiles, column_tiles = launch.blocks(group_rows, chosen.rows), launch.blocks(columns, chosen.columns)
    tiles = window.groups * row_tiles * column_tiles
    parts = parts_of(source, tiles, digits, machine)
    part_calls = launch.blocks(calls(source), parts)
    parts = launch.blocks(calls(source), part_calls)
    load = load_of(source, images, 16 if digits else 8)
    y_row, y_pixel = (1, source.rows) if images.channels_last else (pixels, 1)
    values = {
        "generator": source,
        "plane": images.count * pitch,
        "image_pitch": pitch,
        "y_row": y_row,
        "y_pixel": y_pixel,
        "y_image": source.rows * pixels,
        "pixels": pixels,
        "out_width": images.out_size[1],
        "group_channels": images.group_channels,
        "kernel_w": window.kernel_w,
        "columns": columns,
        "group_rows": group_rows,
        "row_tiles": row_tiles,
        "column_tiles": column_tiles,
        "tiles": tiles * parts,
        "parts": parts,
        "part_calls": part_calls,
        "depth": pitch if images.vectors else source.fan,
        "kernel_h": window.kernel_h,
        "height": height,
        "width": width,
        "pitch": pitch if images.vectors else channels,
        "stride_h": window.stride_h,
        "stride_w": window.stride_w,
        "padding_h": window.padding_h,
        "padding_w": window.padding_w,
        "dilation_h": window.dilation_h,
        "dilation_w": window.dilation_w,
        "load": _LOADS.index(load),
        "element": ELEMENTS[dtype],
        "aligned_words": source.words % 4 == 0 and source.first_word % 4 == 0,
        "stages": chosen.stages(machine),
    }
    later = ["segment_starts", "call_starts", "mask", "mask_words", "x", "power", "scale", "bias", "y", "sums"]

    def launched(kernel: str, blocks: int, threads: int, shared: int) -> launch.Launch:
        return launch.Launch(
            file=chosen.file,
            kernel=kernel,
            arguments="Product",
            blocks=blocks,
            threads=threads,
            shared=shared,
            values=values,
            later=later,
        )

    shared = values["stages"] * chosen.stage_bytes + _HEADER
    run = launched(chosen.name + "_compact" * compact, min(tiles * parts, machine.processors), _THREADS, shared)
    add = None
    if parts > 1:
        name = f"slt_product_add_{'digits' if digits else 'floats'}"
        add = launched(name, columns * launch.blocks(source.rows, _ADD_THREADS), _ADD_THREADS, 0)
    return run, add, parts


def load_of(source: Source, images: Images, piece: int) -> str:
    """How x is read, where 16 bytes are that many values."""
    (channels, height, width), window = images.shape, images.window
    plain = images.vectors or window._replace(groups=1) == Window(1, 1)
    if not images.vectors and images.group_channels % piece:
        return "values"
    if plain:  # columns of a tile are apart by less than 2**31 pieces
        return "rows" if channels < 2**23 * piece else "values"
    padded = (height + 2 * window.padding_h) * (width + 2 * window.padding_w)
    if images.count * padded * channels >= 2**31 * piece or window.kernel_h + window.kernel_w >= 32:
        return "values"
    return "pixels"
