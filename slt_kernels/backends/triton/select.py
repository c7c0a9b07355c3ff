"""Select: the threshold, an exact order statistic of the magnitudes, without a sort, a copy or a synchronization.

The bits of a non-negative float, read as an integer, are in the float's order, so a radix select from the top bits
down finds the rank-th smallest: each pass counts, among the scores that share the prefix found so far, how often each
value of the next bits occurs. The state is two numbers on the device, which each pass reads and updates.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from .arguments import kernel
from .launch import blocks, launch
from .magnitudes import magnitude

_SCORES_PER_PROGRAM = 4096
# (shift, bits) of each pass over a magnitude's 31 or 63 bits. tl.histogram costs a warp one vote per value: a pass of
# 11 bits would save one pass at several times the instructions.
_PASSES = {
    torch.float32: ((23, 8), (15, 8), (7, 8), (0, 7)),
    torch.float64: (*((shift, 8) for shift in range(55, 6, -8)), (0, 7)),
}


@kernel("select")
def select(threshold: Tensor, scores: list[Tensor], rank: int) -> None:
    dtype, device = scores[0].dtype, scores[0].device
    if rank < 1 or rank >= sum(s.numel() for s in scores):
        threshold.fill_(float("-inf" if rank < 1 else "inf"))
        return
    scores = [s.contiguous() for s in scores]
    counts = torch.zeros(1 << 8, dtype=torch.int64, device=device)
    state = torch.zeros(2, dtype=torch.int64, device=device)  # the prefix found so far; how many scores are below it
    warps = 8 if dtype == torch.float64 else 4  # a float64 score takes twice the registers
    for shift, bits in _PASSES[dtype]:
        for s in scores:
            programs = blocks(s.numel(), _SCORES_PER_PROGRAM)
            meta = {"SHIFT": shift, "BITS": bits, "BLOCK": _SCORES_PER_PROGRAM, "num_warps": warps}
            launch(histogram_kernel, programs, device, s, counts, state, s.numel(), **meta)
        launch(descend_kernel, 1, device, counts, state, threshold, rank, BITS=bits)


@triton.jit(do_not_specialize=["count"])
def histogram_kernel(scores, counts, state, count: "i64", SHIFT: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """A program counts BLOCK scores in shared memory and adds its counts to the global ones, atomically.

    They are integers, so the order of the additions does not matter.
    """
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    score = tl.load(scores + at, mask=at < count, other=0)
    digit = magnitude(score) >> SHIFT
    inside = (at < count) & (digit >> BITS == tl.load(state))
    found = tl.histogram((digit & (1 << BITS) - 1).to(tl.int32), 1 << BITS, mask=inside).to(tl.int64)
    tl.atomic_add(counts + tl.arange(0, 1 << BITS), found, mask=found > 0, sem="relaxed")


@triton.jit(do_not_specialize=["rank"])
def descend_kernel(counts, state, threshold, rank: "i64", BITS: tl.constexpr):
    """One program finds the next bits, updates the state, and clears the counts for the next pass."""
    digit = tl.arange(0, 1 << BITS)
    count = tl.load(counts + digit)
    prefix, below = tl.load(state), tl.load(state + 1)
    before = below + tl.cumsum(count, axis=0) <= rank - 1  # values of the bits below the wanted one
    prefix = prefix << BITS | tl.sum(before.to(tl.int64))
    tl.store(state, prefix)
    tl.store(state + 1, below + tl.sum(tl.where(before, count, 0)))
    if threshold.dtype.element_ty == tl.float64:  # complete after the last pass
        tl.store(threshold, prefix.to(tl.float64, bitcast=True))
    else:
        tl.store(threshold, prefix.to(tl.int32).to(tl.float32, bitcast=True))
    tl.debug_barrier()
    tl.store(counts + digit, tl.zeros_like(count))
