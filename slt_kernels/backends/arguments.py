"""Tensors as the kernels of several backends take them."""

import torch
from torch import Tensor


def is_highest(x: Tensor) -> bool:
    """Whether PyTorch's precision of float32 products is "highest", its default, on the device of a tensor.

    ``torch.set_float32_matmul_precision`` sets that of all devices, and cannot be read after newer settings that
    contradict it, such as ``torch.backends.cuda.matmul.fp32_precision``: then that of the device's products counts.
    """
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:
        library = torch.backends.cuda if x.device.type == "cuda" else torch.backends.mkldnn
        return library.matmul.fp32_precision not in ("tf32", "bf16")


def digit_count(x: Tensor) -> int:
    """Digits of fixed point: three for float32 at the precision "highest", two for lower ones and for 16-bit inputs."""
    return 3 if x.dtype == torch.float32 and is_highest(x) else 2


def floats(x: Tensor | None) -> Tensor | None:
    """As contiguous float32, which holds every narrower float."""
    return None if x is None else x.detach().float().contiguous()
