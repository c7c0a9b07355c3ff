"""Select: the threshold, an exact order statistic of the magnitudes, without sorting, copying or waiting.

The bits of a non-negative float, read as an integer, are in its order, so the rank-th smallest is found from the top
bits down: a pass counts, among the scores whose higher bits are those found so far, how often each value of the next
bits occurs. What is found lives in two numbers on the device, which each pass reads and moves on.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .launch import blocks, launch
from .magnitudes import magnitude

_BLOCK = 4096
# A warp counts by votes, one a value: 11 bits at a time would be a pass less, of several times the instructions each.
_PASSES = {  # (shift, bits) of each pass over a magnitude's 31 or 63 bits
    torch.float32: ((23, 8), (15, 8), (7, 8), (0, 7)),
    torch.float64: (*((shift, 8) for shift in range(55, 6, -8)), (0, 7)),
}


def select(scores: list[Tensor], rank: int) -> Tensor:
    dtype, device = scores[0].dtype, scores[0].device
    total = sum(s.numel() for s in scores)
    if rank < 1 or rank >= total:
        return torch.full((), float("-inf" if rank < 1 else "inf"), dtype=dtype, device=device)
    scores = [s.contiguous() for s in scores]
    counts = torch.zeros(1 << 8, dtype=torch.int64, device=device)
    state = torch.zeros(2, dtype=torch.int64, device=device)  # the bits found so far; scores known to be below them
    threshold = torch.empty((), dtype=dtype, device=device)
    warps = 8 if dtype == torch.float64 else 4  # twice the registers a score
    for shift, bits in _PASSES[dtype]:
        for s in scores:
            meta = {"SHIFT": shift, "BITS": bits, "BLOCK": _BLOCK, "num_warps": warps}
            launch(histogram_kernel, blocks(s.numel(), _BLOCK), device, s, counts, state, s.numel(), **meta)
        launch(descend_kernel, 1, device, counts, state, threshold, rank, BITS=bits)
    return threshold


@triton.jit(do_not_specialize=["count"])
def histogram_kernel(scores, counts, state, count: "i64", SHIFT: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """A program counts BLOCK scores in shared memory and adds what it found to the counts of all.

    The additions are of integers: their order does not matter.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(scores + at, mask=at < count, other=0)
    digit = magnitude(score) >> SHIFT
    inside = (at < count) & (digit >> BITS == tl.load(state))
    found = tl.histogram((digit & (1 << BITS) - 1).to(tl.int32), 1 << BITS, mask=inside).to(tl.int64)
    tl.atomic_add(counts + tl.arange(0, 1 << BITS), found, mask=found > 0, sem="relaxed")


@triton.jit(do_not_specialize=["rank"])
def descend_kernel(counts, state, threshold, rank: "i64", BITS: tl.constexpr):
    """One program finds the next bits, moves the state on, and clears the counts for the next pass."""
    digit = tl.arange(0, 1 << BITS)
    count = tl.load(counts + digit)
    prefix, below = tl.load(state), tl.load(state + 1)
    before = below + tl.cumsum(count, axis=0) <= rank - 1  # digits under the one that is looked for
    prefix = prefix << BITS | tl.sum(before.to(tl.int64))
    tl.store(state, prefix)
    tl.store(state + 1, below + tl.sum(tl.where(before, count, 0)))
    if threshold.dtype.element_ty == tl.float64:  # complete after the last pass
        tl.store(threshold, prefix.to(tl.float64, bitcast=True))
    else:
        tl.store(threshold, prefix.to(tl.int32).to(tl.float32, bitcast=True))
    tl.debug_barrier()
    tl.store(counts + digit, tl.zeros_like(count))
