"""Tensors as the extension takes them, and the offsets of free weights."""

from functools import lru_cache, partial

import torch
from torch import Tensor

from ...conv_geometry import channels_last
from ...source import Source
from .. import registry
from . import _cpu, threads

kernel = partial(registry.kernel, backend="cpu")

TYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}  # `Type` of operations.h


def without_float64(*tensors: Tensor) -> bool:
    """Whether none is float64."""
    return all(t.dtype != torch.float64 for t in tensors)


def typed(x: Tensor) -> tuple[int, int]:
    """Address and type of its elements."""
    return x.data_ptr(), TYPES[x.dtype]


def images(x: Tensor) -> tuple[tuple[int, int], tuple[int, ...]]:
    """Dense images: address and type, then sizes, and whether channels are last.

    Images of one channel are in both formats; kernels take them as contiguous ones.
    """
    return typed(x), (*x.shape, x.shape[1] > 1 and channels_last(x))


def dense(x: Tensor) -> Tensor:
    """Images in one of the two dense formats."""
    return x.detach() if channels_last(x) else x.detach().contiguous()


def pointer(x: Tensor | None) -> int:
    return 0 if x is None else x.data_ptr()


def int8_digits(_: Tensor) -> int:
    """`digit_count` of int8 activations: an int8 is one digit."""
    return 1


def resolved(mask: Tensor, source: Source) -> Tensor:
    """Contiguous resolved words of a mask of either form."""
    return (registry.run("expand", mask, source) if mask.dim() == 1 else mask).contiguous()


def used_as_they_are(mask: Tensor, bias: Tensor | None) -> bool:
    """Whether a kernel takes the mask and the bias of a layer as they are; otherwise each call converts them."""
    return (
        mask.dim() == 2
        and mask.is_contiguous()
        and (bias is None or (bias.dtype == torch.float32 and bias.is_contiguous()))
    )


@lru_cache(maxsize=4096)
def count_frozen(source: Source) -> tuple[Tensor, int]:
    """`free_offsets`, and how many weights are locked."""
    offsets = torch.empty(source.rows + 1, dtype=torch.int64, device="cpu")
    locked = torch.empty((), dtype=torch.int64, device="cpu")
    _cpu.count_frozen(source=source, offsets=offsets.data_ptr(), locked=locked.data_ptr(), threads=threads())
    return offsets, int(locked)


def free_offsets(source: Source) -> Tensor:
    """Where the free weights of each row start in the layer's enumeration: int64 ``[rows + 1]``, not to be written."""
    return count_frozen(source)[0]


def check_count(name: str, count: int, expected: int, source: Source) -> None:
    """Raises ValueError for a tensor shorter or longer than the kernel reads."""
    if count != expected:
        raise ValueError(f"{name} has {count} elements: expected {expected} for {source}")
