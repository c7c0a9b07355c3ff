"""The host side of every operation: launches on the tensors' device, and tables that are kept for each source."""

from functools import cache, lru_cache
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...source import NORMAL_TABLE, Source
from ..tables import SourceTables, made_to_last
from .words import KernelSource, decoded, freeze_calls, frozen_words, popcount, words_of

_current_device = getattr(torch._C, "_cuda_getDevice", None)  # PyTorch's own, where it is built for CUDA or ROCm
_current_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)
_hooks = triton.knobs.runtime

_SHORT_OFFSETS = 2**31 - 1
"""The largest offset that fits in 32 bits."""


class Launch:
    """A launch of a kernel, prepared for calls with other tensors of the same types. Multiply-adds are never fused.

    The first call compiles; later ones skip Triton's look-up of the compiled kernel, which takes the host longer than a
    small product takes the device. Tensors start at multiples of 16 bytes (`at_16_bytes`), as the first call's do,
    except those on whose alignment the kernel is not specialized.

    Whoever keeps a launch keeps it for the types of all its tensors: other types are another launch.

    Args:
        programs: how many run.
        device: of the tensors; it need not be the current one.
        numbers: the kernel's arguments that follow its tensors.
        meta: its compile-time arguments, and Triton's options.
    """

    def __init__(self, kernel, programs: int, device: torch.device, *numbers, **meta) -> None:
        self._kernel, self._programs, self._numbers, self._meta = kernel, programs, numbers, meta
        self._index = device.index if device.type == "cuda" else None
        self._run = None

    def __call__(self, *tensors) -> None:
        if self._programs == 0:
            return
        if self._index is None or _current_device() == self._index:
            self._enqueue(tensors)
        else:
            with torch.cuda.device(self._index):
                self._enqueue(tensors)

    def _enqueue(self, tensors: tuple) -> None:
        if self._run is None or _hooks.launch_enter_hook.calls or _hooks.launch_exit_hook.calls:
            arguments = (*tensors, *self._numbers)
            compiled = self._kernel[(self._programs,)](*arguments, enable_fp_fusion=False, **self._meta)
            if compiled is not None:  # the interpreter compiles nothing
                names = self._kernel.arg_names[len(arguments) :]
                self._rest = (*self._numbers, *(self._meta[name] for name in names))
                self._compiled = compiled  # its end would unload the function
                self._function, self._packed = compiled.function, compiled.packed_metadata
                self._run = compiled.run
        else:
            stream = 0 if self._index is None else _current_stream(self._index)
            grid_and_kernel = (self._programs, 1, 1, stream, self._function, self._packed)
            self._run(*grid_and_kernel, None, None, None, *tensors, *self._rest)


def registers(most: int) -> dict[str, int]:
    """The option of a launch that limits the registers of a thread; AMD's compiler takes no limit."""
    return {} if torch.version.hip else {"maxnreg": most}


prepared = lru_cache(maxsize=4096)  # of functions that make launches


def launch(kernel, programs: int, device: torch.device, *arguments, **meta) -> None:
    """Runs ``programs`` programs on ``device``: tensors, then numbers. The launch is kept for the next such call."""
    count = sum(isinstance(argument, Tensor) for argument in arguments)
    tensors, numbers = arguments[:count], arguments[count:]
    types = tuple((tensor.dtype, tensor.data_ptr() % 16 == 0) for tensor in tensors)
    _launch_of(kernel, programs, device, types, numbers, tuple(meta.items()))(*tensors)


@prepared
def _launch_of(kernel, programs: int, device: torch.device, types: tuple, numbers: tuple, meta: tuple) -> Launch:
    return Launch(kernel, programs, device, *numbers, **dict(meta))


def at_16_bytes(x: Tensor) -> Tensor:
    """``x``, contiguous, or a copy that starts at a multiple of 16 bytes: otherwise it would be read value by value,
    and the addresses would not fit in registers."""
    x = x.contiguous()
    return x if x.data_ptr() % 16 == 0 else x.clone()


def blocks(count: int, size: int) -> int:
    """The number of blocks of ``size`` that cover ``count``."""
    return (count + size - 1) // size


class Machine(NamedTuple):
    """The properties of a device that tiles depend on."""

    generation: int  # major compute capability; 8 without the products of 9 and 10
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
    return made_to_last(lambda: torch.tensor(NORMAL_TABLE, dtype=torch.int8, device=device), device)


class FreeStarts(NamedTuple):
    """Offsets of a source's free weights in its enumeration: call c of row n starts at row[n] + call[c, n].

    32 bits per call are a quarter of a bit per weight. A kernel reads the offset of its first call and counts from it.
    Where nothing is frozen, kernels compute the offsets, and these are placeholders.
    """

    row: Tensor  # int64 [rows]
    call: Tensor  # int32 [calls, rows]
    locked: Tensor  # int64 scalar: the number of locked weights


def free_starts(source: Source, device: torch.device) -> FreeStarts:
    """The offsets, computed once for each source with frozen weights and device while it is among those used last."""
    return computed_starts(source, device) if freeze_calls(source) else _no_starts(device)


@cache
def _no_starts(device: torch.device) -> FreeStarts:
    def zeros() -> FreeStarts:
        long = torch.zeros(1, dtype=torch.int64, device=device)
        return FreeStarts(long, torch.zeros(1, dtype=torch.int32, device=device), long[0])

    return made_to_last(zeros, device)


@SourceTables
def computed_starts(source: Source, device: torch.device) -> FreeStarts:
    numbers = KernelSource.of(source)
    free = torch.empty(numbers.calls, numbers.rows, dtype=torch.int32, device=device)
    locked = torch.empty_like(free)
    n = 128
    programs = numbers.calls * blocks(numbers.rows, n)
    meta = {"FREEZE_CALLS": freeze_calls(source), "N": n, **registers(64)}
    launch(count_kernel, programs, device, free, locked, KernelSource.coded(source), **meta)
    rows = free.sum(0)
    return FreeStarts(rows.cumsum(0) - rows, free.cumsum(0, dtype=torch.int32) - free, locked.sum())


def has_long_offsets(source: Source) -> bool:
    """Whether the offset of a free weight may need 64 bits. Addresses of 32 bits take half of the instructions."""
    return source.rows * source.fan > _SHORT_OFFSETS


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
