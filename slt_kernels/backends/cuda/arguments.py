"""Tensors as kernels take them."""

import torch
import torch.nn.functional as F
from torch import Tensor

from ...source import WEIGHTS

SIGNED = WEIGHTS.index("signed_constant")
SUMMANDS = 2**17  # products of a byte and a digit that an int32 sum holds
ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # `Type` of csrc/cuda/arguments.h


def padded(x: Tensor, multiple: int) -> Tensor:
    """Vectors with zeros after the last element, to a multiple of so many."""
    missing = -x.shape[-1] % multiple
    return F.pad(x, (0, missing)) if missing else x


def aligned(x: Tensor) -> Tensor:
    """A tensor whose memory starts at a multiple of 16 bytes."""
    return x if x.data_ptr() % 16 == 0 else x.clone()
