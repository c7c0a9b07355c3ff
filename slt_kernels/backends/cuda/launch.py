"""Launches: prepared once for what does not change from call to call, and then run with pointers."""

import os
from functools import cache, lru_cache, partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from ... import _cuda
from .. import registry
from . import devices
from .built import FOLDER

kernel = partial(registry.kernel, backend="cuda")
planned = lru_cache(maxsize=4096)  # of functions that make launches, or other tables of a source

Launch: TypeAlias = _cuda.Launch
_cuda.use_kernels(os.fspath(FOLDER))
_run = _cuda.run
_stream = getattr(torch._C, "_cuda_getCurrentRawStream", None)  # PyTorch's own, where it is built for CUDA


class Machine(NamedTuple):
    """The properties of a device that launches depend on."""

    capability: int  # 10 major + minor: 80, 86, 89, 90, 100, 120
    processors: int  # multiprocessors
    shared: int  # bytes of shared memory that a block can have


@cache
def machine(device: torch.device) -> Machine:
    """A device's properties."""
    return Machine(*devices()[device.index])


def enqueue(
    launch: Launch, device: torch.device, *values: Tensor | int | tuple[int, ...], reads: tuple[Tensor, ...] = ()
) -> None:
    """Runs a launch on the device's current stream.

    Args:
        launch: made for that device.
        values: of the members that change, in their order; a tensor stands for its address, and a tuple for what its
            member is made of.
        reads: tensors whose addresses are inside a value. Unused here: the simulator of the tests has to know all
            memory that a kernel reads.

    Raises:
        RuntimeError: the driver refused it, or it is the kernel's first on the device and a CUDA graph is captured.
    """
    index = device.index
    _run(launch, index, _stream(index), *values)


def workspace(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Memory that a launch writes for another."""
    return torch.empty(shape, dtype=dtype, device=device)


def blocks(count: int, size: int) -> int:
    """The number of blocks of ``size`` that cover ``count``."""
    return (count + size - 1) // size
