"""Vectors to fixed point, in planes of int8 digits: ``csrc/cuda/digits.cu``."""

from typing import NamedTuple

import torch
from torch import Tensor

from . import launch
from .arguments import ELEMENTS

_PIECE = 8192  # elements that a block converts: PIECE of `Digits` in csrc/cuda/arguments.h
_RUN = 16  # elements that a thread converts at once
_THREADS = 256


class Digits(NamedTuple):
    """Vectors: ``x[i] = power[i, 0] * power[i, 1] * sum of 256**d * planes[d, i]``."""

    planes: Tensor  # int8 [digits, vectors, pitch], zeros past the length
    power: Tensor  # float32 [vectors, 2], powers of two; NaN for a vector that is not finite


def to_digits(x: Tensor, digits: int) -> Digits:
    """Converts ``x`` [vectors, length], contiguous and aligned to 16 bytes; a pitch is a multiple of 16."""
    vectors, length = x.shape
    pitch = launch.blocks(length, _RUN) * _RUN
    cut = pieces(length)
    planes = launch.workspace((digits, vectors, pitch), torch.int8, x.device)
    power = launch.workspace((vectors, 2), torch.float32, x.device)
    largest = launch.workspace((vectors, cut), torch.int32, x.device) if cut > 1 else 0
    for kernel in ("slt_digits_largest", "slt_digits")[cut == 1 :]:
        launch.enqueue(_launch(kernel, vectors, length, x.dtype, digits), x.device, x, largest, planes, power)
    return Digits(planes, power)


def pieces(length: int) -> int:
    """The number of pieces that a vector is cut into."""
    return launch.blocks(length, _PIECE)


def magnitudes(x: Tensor) -> Tensor:
    """The largest magnitude of each piece of ``x``, which is as `to_digits` takes it.

    Returns:
        int32 [vectors, pieces], the bits of float32.
    """
    vectors, length = x.shape
    found = launch.workspace((vectors, pieces(length)), torch.int32, x.device)
    launch.enqueue(_launch("slt_digits_largest", vectors, length, x.dtype, 2), x.device, x, found, 0, 0)
    return found


@launch.planned
def _launch(kernel: str, vectors: int, length: int, dtype: torch.dtype, digits: int) -> launch.Launch:
    pitch = launch.blocks(length, _RUN) * _RUN
    cut = pieces(length)
    return launch.Launch(
        file="digits",
        kernel=kernel,
        arguments="Digits",
        blocks=vectors * cut,
        threads=_THREADS,
        values={
            "length": length,
            "pitch": pitch,
            "plane": vectors * pitch,
            "pieces": cut,
            "element": ELEMENTS[dtype],
            "planes": digits,
            "aligned": length % _RUN == 0,
        },
        later=["x", "largest", "digits", "power"],
    )
