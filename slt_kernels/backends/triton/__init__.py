"""The Triton backend: fused kernels on CUDA and ROCm devices.

Not yet run on a GPU: it is proved under Triton's interpreter, where it takes CPU tensors (``TRITON_INTERPRET=1`` in the
environment), and by compiling its kernels ahead of time (``bench/triton_sass.py``).

``contract.py`` is the weight contract, ``digits.py`` the fixed point of float32 products, ``images.py`` a convolution
as a matrix product; then one file an operation, for Linear and Conv2d alike, none of which is named as its operation:
this module's attribute of that name is the function. Triton is imported once a device is found or an operation asked
for, and no device is touched before an operation runs. float64 goes through the reference backend.
"""

from functools import cache
from importlib import import_module
from importlib.util import find_spec
from os import environ

import torch

_OLDEST = (3, 6)


@cache
def unavailable() -> str | None:
    spec = find_spec("triton")
    if spec is None or spec.origin is None:  # without an origin: any folder of that name
        return "triton is not installed"
    if not _interpreted() and not torch.cuda.is_available():
        return "no CUDA or ROCm device"
    installed = _version()
    if tuple(int(part) for part in installed.split(".")[:2]) < _OLDEST:
        return f"triton {installed} is installed, and {'.'.join(map(str, _OLDEST))} is the oldest that will do"
    return None


def describe() -> str:
    if _interpreted():
        return f"Triton {_version()}, its interpreter"
    return f"Triton {_version()} on {torch.cuda.get_device_name()}"


def _version() -> str:
    """As the module says: distributions of it have several names (triton, triton-rocm, pytorch-triton-rocm)."""
    return import_module("triton").__version__


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
    if name not in globals():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return globals()[name]
