"""The scores' gradient of Linear and Conv2d: ``csrc/cuda/grad_scores.h``."""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ...conv_geometry import Window
from ...source import Source
from . import launch
from .arguments import ELEMENTS
from .forward_small import aligned
from .free_starts import free_starts
from .generator import calls, planes, takes

_ROWS, _CALL = 128, 128  # of a tile
_THREADS = 256
_STAGE_BYTES, _STAGES = 32768, 3
_ADD_ROWS = 32
_ADD_SHARED = _ADD_ROWS * (136 * 4 + 4 * 16 + 128) + 256  # `GradRows` of csrc/cuda/grad_scores_epilogue.h
_PART_STEPS = 4  # a part of the columns has at least as many stages
_WORKSPACE_BYTES = 2**24  # of partial sums, at most
_NAMES = {torch.bfloat16: "bfloat16", torch.float16: "float16"}


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
    dy, x = _padded(dy), _padded(x)
    _product(out, dy, x, scores, scale, source, Shape(len(x), dy.shape[1], x.shape[1]))


@launch.kernel("conv2d_grad_scores", when=_takes)
def conv2d_grad_scores(
    out: Tensor, dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source, window: Window
) -> None:
    dy, x = _same_dtype(dy, x)
    image = (*x.shape[2:], *dy.shape[2:], window)
    dy, x = _padded(_pixels(dy)), _pixels(x)
    if window.groups == 1 and _is_matrix(window):
        x = _padded(x)
    _product(out, dy, x, scores, scale, source, Shape(len(dy), dy.shape[1], x.shape[1], image))


def _product(out: Tensor, dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source, shape: Shape) -> None:
    device = x.device
    highest = torch.get_float32_matmul_precision() == "highest"
    name = _NAMES.get(x.dtype) or ("float32" if highest else "tf32")
    product, add, parts = _launches(source, name, shape, launch.machine(device))
    workspace = 0
    if parts > 1:
        workspace = launch.workspace((parts, source.rows, calls(source), _CALL), torch.float32, device)
    starts = free_starts(source, device)
    values = *starts[:2], aligned(dy), aligned(x), scores.contiguous(), scale, workspace, out
    launch.enqueue(product, device, *values)
    if add is not None:
        launch.enqueue(add, device, *values)


@launch.planned
def _launches(
    source: Source, name: str, shape: Shape, machine: launch.Machine
) -> tuple[launch.Launch, launch.Launch | None, int]:
    """The product, what adds its parts, and how many there are."""
    window = shape.window
    chunk = 4 if name in ("float32", "tf32") else 8
    group_rows = source.rows // window.groups
    group_channels = source.fan // (window.kernel_h * window.kernel_w)
    if _is_matrix(window) and (window.groups == 1 or group_channels % chunk == 0):
        reading = "matrix"
    else:
        reading = "scattered" if group_channels % chunk else "images"
    # A group's tiles start at a whole chunk of dy.
    most_before = 0 if window.groups == 1 or group_rows % chunk == 0 else chunk - 1
    row_tiles = launch.blocks(group_rows + most_before, _ROWS)
    tiles = row_tiles * window.groups * calls(source)
    step = 8 * chunk
    parts, part_columns = split(shape.columns, step, tiles, 1 if name == "float32" else 2, machine)
    values = {
        "generator": source,
        "image": shape.image,
        "columns": shape.columns,
        "part_columns": part_columns,
        "column_parts": parts,
        "dy_pitch": shape.dy_pitch,
        "x_pitch": shape.x_pitch,
        "group_rows": group_rows,
        "group_channels": group_channels,
        "row_tiles": row_tiles,
        "planes": planes(source),
    }
    product = _launch(f"slt_grad_scores_{name}_{reading}", tiles * parts, _STAGES * _STAGE_BYTES, values)
    if parts == 1:
        return product, None, parts
    blocks = calls(source) * launch.blocks(source.rows, _ADD_ROWS)
    return product, _launch("slt_grad_scores_add_parts", blocks, _ADD_SHARED, values), parts


def split(columns: int, step: int, tiles: int, resident: int, machine: launch.Machine) -> tuple[int, int]:
    """How many parts of the columns are summed up on their own, and the columns of a part.

    There are enough to fill every multiprocessor with ``resident`` blocks, if a part has four stages or more.
    """
    steps = launch.blocks(columns, step)
    most = min(launch.blocks(steps, _PART_STEPS), _WORKSPACE_BYTES // (4 * _ROWS * _CALL * tiles))
    part_steps = launch.blocks(steps, max(1, min(resident * machine.processors // tiles, most)))
    return launch.blocks(steps, part_steps), part_steps * step


def _launch(kernel: str, blocks: int, shared: int, values: dict) -> launch.Launch:
    return launch.Launch(
        file="grad_scores",
        kernel=kernel,
        arguments="GradScores",
        blocks=blocks,
        threads=_THREADS,
        shared=shared,
        values=values,
        later=["segment_starts", "call_starts", "dy", "x", "scores", "scale", "parts", "out"],
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


def _padded(x: Tensor) -> Tensor:
    """Vectors of a multiple of 16 bytes."""
    return F.pad(x.contiguous(), (0, -x.shape[1] % (16 // x.element_size())))
