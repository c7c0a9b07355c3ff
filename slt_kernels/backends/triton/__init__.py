"""The Triton backend: fused kernels on CUDA and ROCm devices.

Not yet run on a GPU: it is proved under Triton's interpreter, where it takes CPU tensors (``TRITON_INTERPRET=1`` in the
environment), and by compiling its kernels ahead of time (``bench/triton_sass.py``).

``contract.py`` is the weight contract, ``digits.py`` the fixed point of float32 products, ``images.py`` a convolution
as a matrix product; then one file an operation, for Linear and Conv2d alike. Triton is imported with the first
operation that runs, and nothing touches a device before. float64 goes through the reference backend.
"""

from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from os import environ

import torch

_OLDEST = (3, 6)


@cache
def unavailable() -> str | None:
    try:
        installed = version("triton")
    except PackageNotFoundError:
        return "triton is not installed"
    if tuple(int(part) for part in installed.split(".")[:2]) < _OLDEST:
        return f"triton {installed} is installed, and {'.'.join(map(str, _OLDEST))} is the oldest that will do"
    if not _interpreted() and not torch.cuda.is_available():
        return "no CUDA or ROCm device"
    return None


def describe() -> str:
    if _interpreted():
        return f"Triton {version('triton')}, its interpreter"
    return f"Triton {version('triton')} on {torch.cuda.get_device_name()}"


def supports(device: torch.device) -> bool:
    return device.type == ("cpu" if _interpreted() else "cuda")


def _interpreted() -> bool:
    return environ.get("TRITON_INTERPRET") == "1"


def __getattr__(name: str):
    """An operation that is asked for the first time: all of them become functions of this module."""
    if name.startswith("_"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    operations = import_module(".operations", __name__)
    globals().update({operation: getattr(operations, operation) for operation in operations.__all__})
    return globals()[name]
