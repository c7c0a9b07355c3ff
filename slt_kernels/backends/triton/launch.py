"""The host side of every operation: launches on the tensors' device, and tables that are kept for each source."""

from contextlib import nullcontext
from functools import cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...source import NORMAL_TABLE, Source
from ..tables import kept
from .words import KernelSource, decoded, freeze_calls, frozen_words, popcount, words_of

_compiled: dict[tuple, object] = {}


def launch(kernel, programs: int, device: torch.device, *arguments, **meta) -> None:
    """Runs ``programs`` programs on ``device``, whichever is current. Multiply-adds are never fused.

    Compiled kernels are cached by what Triton specializes on: all numbers, and each tensor's dtype and alignment to 16
    bytes. Triton's own look-up takes longer, and a small product takes the host longer than the device.
    """
    if programs == 0:
        return
    with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
        key = kernel.fn, device, tuple(meta.values()), tuple(map(_kind, arguments))
        if compiled := _compiled.get(key):
            compiled[programs, 1, 1](*arguments, *(meta[name] for name in kernel.arg_names[len(arguments) :]))
        else:
            if len(_compiled) >= 4096:
                _compiled.clear()
            _compiled[key] = kernel[(programs,)](*arguments, enable_fp_fusion=False, **meta)


def _kind(argument):
    return (argument.dtype, argument.data_ptr() % 16 == 0) if isinstance(argument, Tensor) else argument


def blocks(count: int, size: int) -> int:
    """The number of blocks of ``size`` that cover ``count``."""
    return (count + size - 1) // size


class Machine(NamedTuple):
    """The properties of a device that tiles depend on."""

    generation: int  # the major number of the compute capability; 8: none of the below
    processors: int  # multiprocessors


@cache
def machine(device: torch.device) -> Machine:
    """A device's properties. The interpreter's CPU counts as a Hopper of one multiprocessor.

    The tiles of generations 9 (Hopper) and 10 (Blackwell) need products that take W from registers or tensor memory,
    and more than 64 KiB of shared memory. GeForce Blackwell (12) lacks the former; AMD's processors, whose MI300 also
    reports 9, lack both.
    """
    if device.type != "cuda":
        return Machine(9, 1)
    major, _ = torch.cuda.get_device_capability(device)
    processors = torch.cuda.get_device_properties(device).multi_processor_count
    return Machine(major if major < 12 and not torch.version.hip else 8, processors)


@cache
def normal_table(device: torch.device) -> Tensor:
    """The contract's table T of ``normal``, int8 [256]."""
    return kept(lambda: torch.tensor(NORMAL_TABLE, dtype=torch.int8, device=device), device)


class FreeStarts(NamedTuple):
    """Offsets of a source's free weights in its enumeration: call c of row n starts at row[n] + call[c, n].

    32 bits per call are a quarter of a bit per weight. A kernel reads the offset of its first call and counts from it.
    Where nothing is frozen, kernels compute the offsets, and these are placeholders.
    """

    row: Tensor  # int64 [rows]
    call: Tensor  # int32 [calls, rows]
    locked: Tensor  # int64 scalar: the number of locked weights


def free_starts(source: Source, device: torch.device) -> FreeStarts:
    """The offsets, computed once for each source with frozen weights and device."""
    return _starts(source, device) if freeze_calls(source) else _no_starts(device)


@cache
def _starts(source: Source, device: torch.device) -> FreeStarts:
    return kept(lambda: _counted(source, device), device)


@cache
def _no_starts(device: torch.device) -> FreeStarts:
    def zeros() -> FreeStarts:
        long = torch.zeros(1, dtype=torch.int64, device=device)
        return FreeStarts(long, torch.zeros(1, dtype=torch.int32, device=device), long[0])

    return kept(zeros, device)


def _counted(source: Source, device: torch.device) -> FreeStarts:
    numbers = KernelSource.of(source)
    free = torch.empty(numbers.calls, numbers.rows, dtype=torch.int32, device=device)
    locked = torch.empty_like(free)
    n = 128
    programs = numbers.calls * blocks(numbers.rows, n)
    calls = freeze_calls(source)
    launch(count_kernel, programs, device, free, locked, KernelSource.coded(source), FREEZE_CALLS=calls, N=n)
    rows = free.sum(0)
    return FreeStarts(rows.cumsum(0) - rows, free.cumsum(0, dtype=torch.int32) - free, locked.sum())


@triton.jit
def count_kernel(free_counts, locked_counts, source, FREEZE_CALLS: tl.constexpr, N: tl.constexpr):
    """A program counts the free and the locked weights of one call of N rows."""
    source = decoded(source)
    call = tl.program_id(0) % source.calls
    row = tl.program_id(0) // source.calls * N + tl.arange(0, N)
    free, locked = frozen_words(source, row, words_of(source, call), FREEZE_CALLS)
    at = tl.cast(call, tl.int64) * source.rows + row
    tl.store(free_counts + at, tl.sum(popcount(free), axis=1), mask=row < source.rows)
    tl.store(locked_counts + at, tl.sum(popcount(locked), axis=1), mask=row < source.rows)


@triton.jit
def free_start(row_starts, call_starts, source, row, call, CALLS: tl.constexpr):
    """The offsets of the first free weight of each row, int64 [N], and from there of one call's, int32 [N].

    Rows past the last one have offsets that are not used. CALLS: see `frozen_words`.
    """
    if CALLS == 0:
        return row.to(tl.int64) * source.fan, tl.maximum(128 * call - 32 * source.skipped, 0) + tl.zeros_like(row)
    else:
        inside = row < source.rows
        at = tl.cast(call, tl.int64) * source.rows + row
        return tl.load(row_starts + row, mask=inside, other=0), tl.load(call_starts + at, mask=inside, other=0)
