"""The scores' gradient of Linear and Conv2d: ``csrc/cuda/grad_scores*``.

A product writes the gradients itself, or sums over parts of the columns, which a second launch adds.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from ...conv_geometry import Window
from ...source import Source
from ..arguments import is_highest
from . import launch
from .arguments import ELEMENTS, aligned, padded
from .free_starts import free_starts
from .generator import calls, planes, takes

_CALL = 128  # weights of a tile's rows
_THREADS = 256
_SHARED = {128: 3 * 32768, 256: 4 * 49152}  # of the stages of a block, by the rows of its tile
# A tile of 256 rows fills a multiprocessor, which multiplies nothing while gradients are written: about 6,000 cycles
# (docs/cuda.md). With fewer columns than these, two tiles of 128 rows are faster, since one multiplies meanwhile.
_TALL_COLUMNS = 1024
_WORKSPACE_BYTES = 2**24  # of partial sums, at most
_ADD_COST, _ADD_BYTES = 3, 1.5e6  # of adding parts, and of so many bytes of them, where a stage of 16 bits costs 1
_ADD_ROWS = 8  # of a block that adds parts
_DEPTHWISE_ROWS, _DEPTHWISE_TAPS = 32, 9
_DEPTHWISE_BLOCKS = 4  # per multiprocessor
_DEPTHWISE_COLUMNS = 64, 2048  # at least, and at most, so that float32 sums of a warp's stay short
_NAMES = {torch.float32: "float32", torch.bfloat16: "bfloat16", torch.float16: "float16"}


class Shape(NamedTuple):
    """The sizes of a product. ``x_pitch`` elements are from a vector or pixel to the next."""

    columns: int
    dy_pitch: int
    x_pitch: int
    image: tuple = (1, 1, 1, 1, Window(1, 1))  # height and width, those of the output, and the window

    @property
    def window(self) -> Window:
        return self.image[4]


def _takes(dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source, *_: Window) -> bool:
    return (
        dy.dtype in ELEMENTS
        and x.dtype in ELEMENTS
        and scores.dtype == torch.float32
        and takes(source)
        and dy.numel() > 0
        and x.numel() > 0
        and max(dy.numel() // source.rows, x.numel() // x.shape[1]) < 2**31 - 1024  # columns and pixels
    )


@launch.kernel("linear_grad_scores", when=_takes)
def linear_grad_scores(out: Tensor, dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source) -> None:
    dy, x = _same_dtype(dy, x)
    dy, x = _of_whole_pieces(dy), _of_whole_pieces(x)
    _product(out, dy, x, scores, scale, source, Shape(len(x), dy.shape[1], x.shape[1]))


@launch.kernel("conv2d_grad_scores", when=_takes)
def conv2d_grad_scores(
    out: Tensor, dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source, window: Window
) -> None:
    dy, x = _same_dtype(dy, x)
    image = (*x.shape[2:], *dy.shape[2:], window)
    dy, x = _of_whole_pieces(_pixels(dy)), _pixels(x)
    if window.groups == 1 and _is_matrix(window):
        x = _of_whole_pieces(x)
    _product(out, dy, x, scores, scale, source, Shape(len(dy), dy.shape[1], x.shape[1], image))


def _product(out: Tensor, dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source, shape: Shape) -> None:
    device = x.device
    highest = x.dtype == torch.float32 and is_highest(x)
    launches, parts = _launches(source, x.dtype, highest, shape, launch.machine(device))
    workspace = 0
    if len(launches) > 1:
        workspace = launch.workspace((parts, source.rows, calls(source), _CALL), torch.float32, device)
    starts = free_starts(source, device)
    values = *starts[:2], aligned(dy), aligned(x), scores.contiguous(), scale, workspace, out, out.numel()
    for prepared in launches:
        launch.enqueue(prepared, device, *values)


@launch.planned
def _launches(
    source: Source, dtype: torch.dtype, highest: bool, shape: Shape, machine: launch.Machine
) -> tuple[list[launch.Launch], int]:
    """The product, and what adds its parts if there are any; the number of parts."""
    window = shape.window
    group_rows = source.rows // window.groups
    group_channels = source.fan // (window.kernel_h * window.kernel_w)
    values = {
        "generator": source,
        "image": shape.image,
        "columns": shape.columns,
        "dy_pitch": shape.dy_pitch,
        "x_pitch": shape.x_pitch,
        "group_rows": group_rows,
        "group_channels": group_channels,
        "planes": planes(source),
    }
    if group_channels == 1 and calls(source) == 1:
        row_tiles = launch.blocks(source.rows, _DEPTHWISE_ROWS)
        tiles = row_tiles * launch.blocks(source.fan, _DEPTHWISE_TAPS)
        parts, part_columns = split_depthwise(shape.columns, tiles, machine)
        values |= {"row_tiles": row_tiles, "column_parts": parts, "part_columns": part_columns}
        first = _launch("grad_scores_depthwise", _NAMES[dtype], tiles * parts, 0, values)
        return [first, _add(source, values)], parts

    wide = dtype == torch.float32
    chunk = 4 if wide else 8
    if _is_matrix(window) and (window.groups == 1 or group_channels % chunk == 0):
        reading = "matrix"
    else:
        reading = "scattered" if group_channels % chunk else "images"
    # A group's tiles start at a whole chunk of dy.
    most_before = 0 if window.groups == 1 or group_rows % chunk == 0 else chunk - 1
    span = group_rows + most_before
    tall = machine.capability == 90 and not wide and reading != "scattered" and shape.columns >= _TALL_COLUMNS
    rows = 256 if tall and _fills_tall_tiles(span) else 128
    row_tiles = launch.blocks(span, rows)
    tiles = row_tiles * window.groups * calls(source)
    slots = 1 if rows == 256 or (wide and highest) else 2
    parts, part_columns = split(shape.columns, 8 * chunk, tiles, rows, slots, 3 if wide and highest else 1, machine)
    values |= {"row_tiles": row_tiles, "column_parts": parts, "part_columns": part_columns}
    name = f"{'tf32' if wide and not highest else _NAMES[dtype]}_{reading}{'_256' if rows == 256 else ''}"
    product = _launch("grad_scores", name, tiles * parts, _SHARED[rows], values)
    return [product, _add(source, values)] if parts > 1 else [product], parts


def _fills_tall_tiles(rows: int) -> bool:
    """Whether tiles of 256 rows, which read x half as often, compute little more than is used."""
    return 256 * launch.blocks(rows, 256) <= 1.125 * 128 * launch.blocks(rows, 128)


def split(
    columns: int, step: int, tiles: int, rows: int, slots: int, step_cost: int, machine: launch.Machine
) -> tuple[int, int]:
    """How many parts of the columns are summed up on their own, and the columns of a part: a whole number of stages.

    Args:
        step: columns of a stage.
        rows: of a tile.
        slots: blocks that a multiprocessor holds.
        step_cost: of the products of a stage.
    """
    steps, tile_bytes = launch.blocks(columns, step), 4 * rows * _CALL
    best = None
    for wanted in range(1, 1 + max(1, min(steps, _WORKSPACE_BYTES // (tile_bytes * tiles)))):
        part_steps = launch.blocks(steps, wanted)
        parts = launch.blocks(steps, part_steps)
        waves = launch.blocks(tiles * parts, slots * machine.processors)
        cost = waves * part_steps * step_cost
        if parts > 1:
            cost += _ADD_COST + tiles * parts * tile_bytes / _ADD_BYTES
        if best is None or cost < best[0]:
            best = cost, parts, part_steps * step
    return best[1:]


def split_depthwise(columns: int, tiles: int, machine: launch.Machine) -> tuple[int, int]:
    """The parts of the columns for one channel per group, and the columns of a part."""
    least, most = _DEPTHWISE_COLUMNS
    wanted = launch.blocks(columns, max(1, _DEPTHWISE_BLOCKS * machine.processors // tiles))
    part_columns = min(max(wanted, least), most)
    return launch.blocks(columns, part_columns), part_columns


def _add(source: Source, values: dict) -> launch.Launch:
    blocks = calls(source) * launch.blocks(source.rows, _ADD_ROWS)
    return _launch("grad_scores_parts", "add", blocks, 0, values)


def _launch(file: str, name: str, blocks: int, shared: int, values: dict) -> launch.Launch:
    return launch.Launch(
        file=file,
        kernel=f"slt_{file}_{name}",
        arguments="GradScores",
        blocks=blocks,
        threads=_THREADS,
        shared=shared,
        values=values,
        later=["segment_starts", "call_starts", "dy", "x", "scores", "scale", "parts", "out", "free"],
    )


def _is_matrix(window: Window) -> bool:
    """Whether each output pixel reads the input pixel of its own number."""
    return window.kernel == window.stride == (1, 1) and window.padding == (0, 0)


def _same_dtype(dy: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(dy.dtype, x.dtype)
    return dy.detach().to(dtype), x.detach().to(dtype)


def _pixels(images: Tensor) -> Tensor:
    """Images [B, C, H, W] as vectors [B * H * W, C]; a copy unless they are channels-last."""
    return images.permute(0, 2, 3, 1).contiguous().flatten(0, 2)


def _of_whole_pieces(x: Tensor) -> Tensor:
    """Vectors of a multiple of 16 bytes."""
    return padded(x, 16 // x.element_size()).contiguous()
