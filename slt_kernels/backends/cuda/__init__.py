"""The CUDA backend: C++ kernels for NVIDIA's tensor cores, compiled when the package is built.

Not yet run on a GPU. Its kernels are executed by a simulator in the tests.
"""

from functools import cache

import torch

try:
    from ... import _cuda
except ImportError as error:
    _cuda, _why_not = None, str(error)
else:
    _why_not = None


@cache
def unavailable() -> str | None:
    return _why_not or "no driver"


def describe() -> str:
    return "CUDA C++"


def supports(device: torch.device) -> bool:
    return device.type == "cuda"
