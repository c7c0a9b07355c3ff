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

import re
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from os import environ

import torch

COPIES_IMAGES = True
"""Kernels read and write channels-last images; see `registry.copies_images`."""
_OLDEST = (3, 6)
FENCED = (3, 7, 1)
"""From this version on Triton puts a fence between its copies and the tensor cores of Hopper and Blackwell (its issue
9610). Without one, a product may read what was in shared memory before."""


@cache
def unavailable() -> str | None:
    spec = find_spec("triton")
    if spec is None or spec.origin is None:  # a plain folder named triton has no origin
        return "triton is not installed"
    if not _interpreted() and not torch.cuda.is_available():
        return "no CUDA or ROCm device"
    if version() < _OLDEST:
        return f"triton {_installed()} is installed: expected {'.'.join(map(str, _OLDEST))} or newer"
    if _interpreted():
        return None
    reasons = [_why_not_on(index) for index in range(torch.cuda.device_count())]
    return None if None in reasons else reasons[0]


@cache
def _why_not_on(index: int) -> str | None:
    if torch.version.hip is not None:
        return None
    major, minor = torch.cuda.get_device_capability(index)
    device = f"{torch.cuda.get_device_name(index)} (compute capability {major}.{minor})"
    if major < 8:  # int8 products do not compile
        return f"{device}: expected 8.0 or newer"
    if major in (10, 11) and version() < FENCED:  # `assembly.fenced` does not compile
        return f"triton {_installed()} is installed: expected {'.'.join(map(str, FENCED))} or newer for {device}"
    return None


def describe() -> str:
    if _interpreted():
        return f"Triton {_installed()}, its interpreter"
    return f"Triton {_installed()} on {torch.cuda.get_device_name()}"


def version() -> tuple[int, ...]:
    """Triton's version, as far as it is numbers."""
    return tuple(map(int, re.match(r"(\d+)\.(\d+)(?:\.(\d+))?", _installed()).groups("0")))


def _installed() -> str:
    """The module's version; distributions have several names (triton, triton-rocm, pytorch-triton-rocm)."""
    return import_module("triton").__version__


def supports(device: torch.device) -> bool:
    if _interpreted():
        return device.type == "cpu"
    if device.type != "cuda":
        return False
    return _why_not_on(torch.cuda.current_device() if device.index is None else device.index) is None


def _interpreted() -> bool:
    return environ.get("TRITON_INTERPRET") == "1"
