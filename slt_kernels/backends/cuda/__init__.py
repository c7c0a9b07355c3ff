"""The CUDA backend: C++ kernels for NVIDIA's tensor cores, compiled when the package is built.

Not yet run on a GPU. Its kernels are executed by a simulator in the tests.

Importing this package loads no driver. ``SLT_CUDA_DRIVER`` in the environment names another library than
``libcuda.so.1``; with ``SLT_CUDA_CHECK=1``, each launch is waited for, so that an error names its kernel.
"""

import os
from functools import cache

import torch

from .built import Kernels, _cuda, kernels

_CHECK_BY_NVML = "PYTORCH_NVML_BASED_CUDA_CHECK"


@cache
def unavailable() -> str | None:
    if isinstance(found := kernels(), str):
        return found
    if os.environ.get("CUDA_FORCE_PTX_JIT") == "1":
        return "CUDA_FORCE_PTX_JIT=1 keeps the driver from using the cubins that launches need: unset it"
    if torch.version.cuda is None:
        return f"PyTorch is built {'for ROCm' if torch.version.hip else 'without CUDA'}"
    try:
        if reason := found.why_not_with(_cuda.driver_version()):
            return reason
        # A driver that is initialized does not work in forked children. PyTorch's own question initializes it as well,
        # unless it is told not to: then a device's capability is left to `supports`.
        if os.environ.get(_CHECK_BY_NVML) == "1" and not torch.cuda.is_initialized():
            return None if torch.cuda.is_available() else "no CUDA device"
        reasons = [_why_not_on(index) for index in range(len(devices()))]
    except RuntimeError as error:
        return str(error)
    if not reasons:
        return "no CUDA device"
    return None if None in reasons else reasons[0]


@cache
def devices() -> list[tuple[int, int, int]]:
    """Capability (10 major + minor), multiprocessors, and a block's shared memory in bytes, of each device.

    Raises:
        RuntimeError: the driver cannot be loaded or initialized; the message says why.
    """
    return _cuda.devices()


@cache
def _why_not_on(index: int) -> str | None:
    return kernels().why_not_on(devices()[index][0], _cuda.driver_version())


def describe() -> str:
    return f"CUDA C++ on {torch.cuda.get_device_name()}"


def supports(device: torch.device) -> bool:
    if device.type != "cuda" or unavailable() is not None:
        return False
    return _why_not_on(torch.cuda.current_device() if device.index is None else device.index) is None


__all__ = ["Kernels", "describe", "devices", "kernels", "supports", "unavailable"]
