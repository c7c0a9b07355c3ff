"""Tensors as kernels take them."""

import torch
from torch import Tensor

ELEMENTS = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # `Element` of planes.h


def digit_count(x: Tensor) -> int:
    """Digits of fixed point: three for float32 accuracy, two where that is not asked for, or the inputs have less."""
    return 3 if x.dtype == torch.float32 and torch.get_float32_matmul_precision() == "highest" else 2


def floats(x: Tensor | None) -> Tensor | None:
    """As contiguous float32, which holds every narrower float."""
    return None if x is None else x.detach().float().contiguous()
