"""Tensors as kernels take them."""

import torch
from torch import Tensor

from ...source import WEIGHTS

SIGNED = WEIGHTS.index("signed_constant")
SUMMANDS = 2**17  # products of a byte and a digit that an int32 sum holds
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # `Type` of csrc/cuda/arguments.h


def digit_count(x: Tensor) -> int:
    """Digits of fixed point: three for float32 accuracy, two where that is not asked for, or the inputs have less."""
    return 3 if x.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest" else 2


def floats(x: Tensor | None) -> Tensor | None:
    """As contiguous float32, which holds every narrower float."""
    return None if x is None else x.detach().float().contiguous()


def aligned(x: Tensor) -> Tensor:
    """A tensor whose memory starts at a multiple of 16 bytes."""
    return x if x.data_ptr() % 16 == 0 else x.clone()
