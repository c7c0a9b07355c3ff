"""Entropy coding of the learned bits: Bernoulli symbols in one ANS stream for all layers."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def entropy_coder():
    """The module of coders; ModuleNotFoundError names the extra."""
    try:
        import constriction
    except ModuleNotFoundError:
        raise ModuleNotFoundError('compressed tickets need constriction: pip install "slt_kernels[compress]"') from None
    return constriction.stream


def encode(octets: Sequence[Tensor], free: Sequence[int], ones: Sequence[int]) -> Tensor:
    """Entropy-codes the learned bits of all layers, ``ceil(free / 8)`` bytes each; returns uint8."""
    coder = entropy_coder().stack.AnsCoder()
    for mask, n, kept in reversed(list(zip(octets, free, ones, strict=True))):  # a stack: last layer first
        symbols = np.unpackbits(mask.numpy(), count=n, bitorder="little").astype(np.int32)
        coder.encode_reverse(symbols, _bernoulli(n, kept))
    return torch.from_numpy(coder.get_compressed().astype("<u4").view(np.uint8))


def decode(coded: Tensor, free: Sequence[int], ones: Sequence[int]) -> list[Tensor]:
    """The inverse of `encode`. Its memory is bounded by ``max(free)`` symbols, also for a damaged stream.

    Raises:
        ValueError: a stream whose layers do not have ``ones`` set bits, or that is too long.
    """
    coder = entropy_coder().stack.AnsCoder(coded.numpy().view("<u4").astype(np.uint32))
    octets = []
    for n, kept in zip(free, ones, strict=True):
        symbols = coder.decode(_bernoulli(n, kept), n).astype(np.uint8)
        if symbols.sum(dtype=np.int64) != kept:
            raise ValueError(f"{symbols.sum()} bits set, expected {kept}")
        octets.append(torch.from_numpy(np.packbits(symbols, bitorder="little")))
    if not coder.is_empty():
        raise ValueError("more bits than the layers have")
    return octets


def _bernoulli(n: int, ones: int):
    return entropy_coder().model.Bernoulli(ones / max(n, 1), perfect=False)
