"""The Triton backend: fused kernels on CUDA and ROCm devices.

Not yet run on a GPU. It is tested under Triton's interpreter (``TRITON_INTERPRET=1`` in the environment), where it
takes CPU tensors, and by compiling its kernels ahead of time (``bench/triton_sass.py``).

Importing this package imports no Triton and touches no device: the registry imports its modules on the first operation.

=======================================================  ==========================================================
``forward`` ``grad_input`` ``grad_scores``               the products, for Linear and Conv2d
``embedding``                                            rows that are looked up, and the gradient of their scores
``select`` ``pack`` ``expand`` ``materialize``           masks
``words`` ``weights``                                    the weight contract: words, and their expansion to weights
``fixed_point`` ``images``                               float32 products as int8 digits; implicit im2col
``tiles`` ``autotuning`` ``split_k``                     how a product is cut into programs
``launch`` ``magnitudes`` ``arguments`` ``assembly``     what they share
=======================================================  ==========================================================
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
    if spec is None or spec.origin is None:  # a plain folder named triton has no origin
        return "triton is not installed"
    if not _interpreted() and not torch.cuda.is_available():
        return "no CUDA or ROCm device"
    installed = _version()
    if tuple(int(part) for part in installed.split(".")[:2]) < _OLDEST:
        return f"triton {installed} is installed: expected {'.'.join(map(str, _OLDEST))} or newer"
    if not _interpreted() and not any(map(_is_new, range(torch.cuda.device_count()))):
        return f"{torch.cuda.get_device_name()} has compute capability {_capability(0)}: expected 8.0 or newer"
    return None


def describe() -> str:
    if _interpreted():
        return f"Triton {_version()}, its interpreter"
    return f"Triton {_version()} on {torch.cuda.get_device_name()}"


def _version() -> str:
    """The module's version; distributions have several names (triton, triton-rocm, pytorch-triton-rocm)."""
    return import_module("triton").__version__


def supports(device: torch.device) -> bool:
    if _interpreted():
        return device.type == "cpu"
    return device.type == "cuda" and _is_new(torch.cuda.current_device() if device.index is None else device.index)


@cache
def _is_new(index: int) -> bool:
    """Whether the int8 products compile for a device: those of tensor cores before Ampere do not."""
    return torch.version.hip is not None or torch.cuda.get_device_capability(index) >= (8, 0)


def _capability(index: int) -> str:
    return ".".join(map(str, torch.cuda.get_device_capability(index)))


def _interpreted() -> bool:
    return environ.get("TRITON_INTERPRET") == "1"
