"""The CPU backend: C++ kernels for every instruction set from plain C++ to AVX-512 VNNI and AMX, chosen at run time.

float64 inputs go through the reference backend. ``SLT_CPU_ISA`` in the environment forces a lower instruction set than
the best that runs here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from .. import bits
from ..source import Source
from ..window import Window, channels_last
from . import reference

try:
    from .. import _cpu
except ImportError as error:
    built = any(Path(__file__).parents[1].glob("_cpu.*"))
    _cpu = None
    _why_not = str(error) if built else "the extension slt_kernels._cpu is not built: pip install -e . builds it"
else:
    _why_not = None

_misnamed = None  # a mistake of the environment's, told when it would matter
if _cpu and (_forced := os.environ.get("SLT_CPU_ISA")):
    if _forced in _cpu.instruction_sets():
        _cpu.use_instruction_set(_forced)
    else:
        _misnamed = f"SLT_CPU_ISA={_forced!r}: expected one of {', '.join(_cpu.instruction_sets())}"

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


# GNU's OpenMP cannot start threads in a child of a process that had some: there, kernels run on one.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def unavailable() -> str | None:
    return _why_not


def describe() -> str:
    return _misnamed or f"{_cpu.instruction_set()}, {_threads()} threads (of {', '.join(_cpu.instruction_sets())})"


def supports(device: torch.device) -> bool:
    if _misnamed and device.type == "cpu":
        raise ValueError(_misnamed)
    return device.type == "cpu"


def instruction_sets() -> list[str]:
    """The instruction sets that run here, the best last."""
    return _cpu.instruction_sets()


def instruction_set() -> str:
    """The one in use."""
    return _cpu.instruction_set()


@contextmanager
def use_instruction_set(name: str) -> Iterator[None]:
    """Forces one of `instruction_sets` inside a ``with`` block, for every thread of the process.

    Raises:
        ValueError: it does not run here.
    """
    before = _cpu.instruction_set()
    _cpu.use_instruction_set(name)
    try:
        yield
    finally:
        _cpu.use_instruction_set(before)


# Linear


def linear_forward(x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source) -> Tensor:
    if x.dtype == torch.float64:
        return reference.linear_forward(x, mask, scale, bias, source)
    mask, inputs, offset = _resolved(mask, source), x.detach().contiguous(), _floats(bias)
    y = torch.empty(len(x), source.rows, dtype=x.dtype)
    _cpu.linear_forward(
        source=source,
        mask=mask.data_ptr(),
        x=_typed(inputs),
        batch=len(x),
        scale=scale.data_ptr(),
        bias=_pointer(offset),
        y=_typed(y),
        digits=_digits(x),
        threads=_threads(),
    )
    return y


def linear_grad_input(dy: Tensor, mask: Tensor, scale: Tensor, source: Source) -> Tensor:
    if dy.dtype == torch.float64:
        return reference.linear_grad_input(dy, mask, scale, source)
    mask, inputs = _resolved(mask, source), dy.detach().contiguous()
    dx = torch.empty(len(dy), source.fan, dtype=dy.dtype)
    _cpu.linear_grad_input(
        source=source,
        mask=mask.data_ptr(),
        dy=_typed(inputs),
        batch=len(dy),
        scale=scale.data_ptr(),
        dx=_typed(dx),
        digits=_digits(dy),
        threads=_threads(),
    )
    return dx


def linear_grad_scores(dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source) -> Tensor:
    if torch.float64 in (x.dtype, dy.dtype, scores.dtype):
        return reference.linear_grad_scores(dy, x, scores, scale, source)
    dy, x = dy.contiguous()[:, :, None, None], x.contiguous()[:, :, None, None]
    return _grad_scores(dy, x, scores, scale, source, Window(1, 1))


# Conv2d


def conv2d_forward(
    x: Tensor, mask: Tensor, scale: Tensor, bias: Tensor | None, source: Source, window: Window
) -> Tensor:
    if x.dtype == torch.float64:
        return reference.conv2d_forward(x, mask, scale, bias, source, window)
    mask, images, offset = _resolved(mask, source), _dense(x), _floats(bias)
    y = torch.empty(len(x), source.rows, *window.output_size(*x.shape[2:]), dtype=x.dtype, memory_format=_format(x))
    _cpu.conv2d_forward(
        source=source,
        window=window,
        mask=mask.data_ptr(),
        x=_images(images),
        scale=scale.data_ptr(),
        bias=_pointer(offset),
        y=_images(y),
        digits=_digits(x),
        threads=_threads(),
    )
    return y


def conv2d_grad_input(
    dy: Tensor, mask: Tensor, scale: Tensor, source: Source, window: Window, size: list[int]
) -> Tensor:
    if dy.dtype == torch.float64:
        return reference.conv2d_grad_input(dy, mask, scale, source, window, size)
    mask, images = _resolved(mask, source), _dense(dy)
    channels = source.fan // (window.kernel_h * window.kernel_w) * window.groups
    dx = torch.empty(len(dy), channels, *size, dtype=dy.dtype, memory_format=_format(dy))
    _cpu.conv2d_grad_input(
        source=source,
        window=window,
        mask=mask.data_ptr(),
        dy=_images(images),
        scale=scale.data_ptr(),
        dx=_images(dx),
        digits=_digits(dy),
        threads=_threads(),
    )
    return dx


def conv2d_grad_scores(dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source, window: Window) -> Tensor:
    if torch.float64 in (x.dtype, dy.dtype, scores.dtype):
        return reference.conv2d_grad_scores(dy, x, scores, scale, source, window)
    return _grad_scores(dy, x, scores, scale, source, window)


# Embedding


def embedding_forward(index: Tensor, mask: Tensor, scale: Tensor, source: Source, dtype: torch.dtype) -> Tensor:
    index = _rows_of(index, source)
    if dtype == torch.float64:
        return reference.embedding_forward(index, mask, scale, source, dtype)
    mask, offsets = mask.contiguous(), free_offsets(source) if mask.dim() == 1 else None
    y = torch.empty(len(index), source.fan, dtype=dtype)
    _cpu.embedding_forward(
        source=source,
        mask=mask.data_ptr(),
        offsets=_pointer(offsets),
        index=index.data_ptr(),
        count=len(index),
        scale=scale.data_ptr(),
        y=_typed(y),
        threads=_threads(),
    )
    return y


def embedding_grad_scores(dy: Tensor, index: Tensor, scores: Tensor, scale: Tensor, source: Source) -> Tensor:
    index = _rows_of(index, source)
    if torch.float64 in (dy.dtype, scores.dtype):
        return reference.embedding_grad_scores(dy, index, scores, scale, source)
    offsets = free_offsets(source)
    _check_count("scores", scores.numel(), int(offsets[-1]), source)
    index, order = index.sort(stable=True)
    index, counts = index.unique_consecutive(return_counts=True)
    starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    dy, scores = dy.detach().contiguous(), scores.detach().contiguous()
    out = torch.zeros(scores.numel(), dtype=torch.float32)
    _cpu.embedding_grad_scores(
        source=source,
        index=index.data_ptr(),
        count=len(index),
        starts=starts.data_ptr(),
        order=order.data_ptr(),
        dy=_typed(dy),
        scores=scores.data_ptr(),
        scale=scale.data_ptr(),
        offsets=offsets.data_ptr(),
        out=out.data_ptr(),
        threads=_threads(),
    )
    return out


# Masks


def select(scores: list[Tensor], rank: int) -> Tensor:
    if scores[0].dtype != torch.float32 or rank < 1 or rank >= sum(s.numel() for s in scores):
        return reference.select(scores, rank)
    scores = [s.detach().contiguous() for s in scores]
    out = torch.empty((), dtype=torch.float32)
    _cpu.select(
        scores=[s.data_ptr() for s in scores],
        counts=[s.numel() for s in scores],
        rank=rank,
        out=out.data_ptr(),
        threads=_threads(),
    )
    return out


def pack(scores: Tensor, threshold: Tensor, source: Source, compact: bool) -> tuple[Tensor, Tensor]:
    if scores.dtype != torch.float32:
        return reference.pack(scores, threshold, source, compact)
    offsets, locked = _count_frozen(source)
    _check_count("scores", scores.numel(), int(offsets[-1]), source)
    scores = scores.detach().contiguous()
    mask = torch.empty(bits.words_for(len(scores)) if compact else (source.rows, source.words), dtype=torch.int32)
    kept = torch.empty((), dtype=torch.int64)
    above = threshold.detach().view(torch.int32).item() & 0xFFFFFFFF  # its bits: a float might become 0
    _cpu.pack(
        source=source,
        scores=scores.data_ptr(),
        threshold=above,
        offsets=offsets.data_ptr(),
        locked=locked,
        compact=compact,
        out=mask.data_ptr(),
        kept=kept.data_ptr(),
        threads=_threads(),
    )
    return mask, kept


def expand(mask: Tensor, source: Source) -> Tensor:
    offsets = free_offsets(source)
    _check_count("mask", mask.numel(), bits.words_for(int(offsets[-1])), source)
    mask = mask.contiguous()
    out = torch.empty(source.rows, source.words, dtype=torch.int32)
    _cpu.expand(
        source=source,
        compact=mask.data_ptr(),
        offsets=offsets.data_ptr(),
        out=out.data_ptr(),
        threads=_threads(),
    )
    return out


def materialize(mask: Tensor, source: Source) -> Tensor:
    mask = _resolved(mask, source)
    out = torch.empty(source.rows, source.fan, dtype=torch.int8)
    _cpu.materialize(source=source, mask=mask.data_ptr(), out=out.data_ptr(), threads=_threads())
    return out


def free_offsets(source: Source) -> Tensor:
    """Where the free weights of each row start in the layer's enumeration: int64 ``[rows + 1]``, not to be written."""
    return _count_frozen(source)[0]


# What they share


def _grad_scores(dy: Tensor, x: Tensor, scores: Tensor, scale: Tensor, source: Source, window: Window) -> Tensor:
    offsets = free_offsets(source)
    _check_count("scores", scores.numel(), int(offsets[-1]), source)
    if 0 in dy.shape:
        return torch.zeros(scores.numel(), dtype=torch.float32)
    scores, digits = scores.detach().contiguous(), _digits(x)
    dy, x = _dense(dy), _dense(x)
    out = torch.empty(scores.numel(), dtype=torch.float32)
    _cpu.grad_scores(
        source=source,
        window=window,
        dy=_images(dy),
        x=_images(x),
        scores=scores.data_ptr(),
        scale=scale.data_ptr(),
        offsets=offsets.data_ptr(),
        out=out.data_ptr(),
        digits=digits,
        threads=_threads(),
    )
    return out


@lru_cache(maxsize=4096)
def _count_frozen(source: Source) -> tuple[Tensor, int]:
    offsets, locked = torch.empty(source.rows + 1, dtype=torch.int64), torch.empty((), dtype=torch.int64)
    _cpu.count_frozen(source=source, offsets=offsets.data_ptr(), locked=locked.data_ptr(), threads=_threads())
    return offsets, int(locked)


def _check_count(name: str, count: int, expected: int, source: Source) -> None:
    """Kernels read as many as the source has free weights, so a shorter tensor must not reach them."""
    if count != expected:
        raise ValueError(f"{name} has {count} elements: expected {expected} for {source}")


def _resolved(mask: Tensor, source: Source) -> Tensor:
    """Contiguous resolved words of a mask of either form."""
    return (expand(mask, source) if mask.dim() == 1 else mask).contiguous()


def _rows_of(index: Tensor, source: Source) -> Tensor:
    """Contiguous int64 numbers of rows that there are."""
    if index.numel() and not (index.min() >= 0 and index.max() < source.rows):
        outside = index[(index < 0) | (index >= source.rows)][0]
        raise IndexError(f"index holds {outside}: expected rows in [0, {source.rows})")
    return index.long().contiguous()


def _dense(x: Tensor) -> Tensor:
    """Images in one of the two dense formats."""
    return x.detach() if channels_last(x) else x.detach().contiguous()


def _format(x: Tensor) -> torch.memory_format:
    return torch.channels_last if channels_last(x) else torch.contiguous_format


def _images(x: Tensor) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Dense images as kernels take them: their numbers, their sizes, and whether channels are last."""
    return _typed(x), (*x.shape, channels_last(x))


_TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # `Type` of operations.h


def _typed(x: Tensor) -> tuple[int, int]:
    """Where its numbers are, and of which type."""
    return x.data_ptr(), _TYPES[x.dtype]


def _floats(x: Tensor | None) -> Tensor | None:
    """As contiguous float32: narrower floats are among them."""
    return None if x is None else x.detach().float().contiguous()


def _pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def _digits(x: Tensor) -> int:
    """Of fixed point, base 256: three for float32 accuracy; two for lower precision or 16-bit inputs."""
    return 3 if x.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest" else 2


def _threads() -> int:
    return 1 if _forked else torch.get_num_threads()
