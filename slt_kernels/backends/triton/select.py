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
from .launch import Launch, at_16_bytes, blocks, prepared
from .magnitudes import magnitude

_SCORES_PER_PROGRAM = 4096
_TENSORS_PER_LAUNCH = 64
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
    scores = [at_16_bytes(s) for s in scores if s.numel()]
    counts = torch.zeros(1 << 8, dtype=torch.int64, device=device)
    state = torch.zeros(2, dtype=torch.int64, device=device)  # the prefix found so far; how many scores are below it
    parts = [tuple(scores[i : i + _TENSORS_PER_LAUNCH]) for i in range(0, len(scores), _TENSORS_PER_LAUNCH)]
    sizes = [tuple(s.numel() for s in part) for part in parts]
    for shift, bits in _PASSES[dtype]:
        for part, numels in zip(parts, sizes, strict=True):
            _histogram_launch(numels, shift, bits, dtype, device)(part, counts, state)
        _descend_launch(rank, bits, dtype, device)(counts, state, threshold)


@prepared
def _histogram_launch(
    sizes: tuple[int, ...], shift: int, bits: int, dtype: torch.dtype, device: torch.device
) -> Launch:
    programs = sum(blocks(size, _SCORES_PER_PROGRAM) for size in sizes)
    warps = 8 if dtype == torch.float64 else 4  # a float64 score takes twice the registers
    meta = {"SHIFT": shift, "BITS": bits, "BLOCK": _SCORES_PER_PROGRAM, "num_warps": warps}
    return Launch(histogram_kernel, programs, device, sizes, **meta)


@prepared
def _descend_launch(rank: int, bits: int, dtype: torch.dtype, device: torch.device) -> Launch:
    return Launch(descend_kernel, 1, device, rank, BITS=bits)


@triton.jit(do_not_specialize=["sizes"])
def histogram_kernel(scores, counts, state, sizes, SHIFT: tl.constexpr, BITS: tl.constexpr, BLOCK: tl.constexpr):
    """A program counts BLOCK scores of one tensor in shared memory and adds its counts to the global ones, atomically.

    They are integers, so the order of the additions does not matter. ``scores`` and ``sizes`` are tuples; programs
    count through the blocks of all tensors.
    """
    block = tl.program_id(0)
    tensor, size, first, end = scores[0], tl.cast(sizes[0], tl.int64), 0, 0
    for i in tl.static_range(len(scores)):
        here = block >= end
        tensor = tl.where(here, scores[i], tensor)
        size = tl.where(here, tl.cast(sizes[i], tl.int64), size)
        first = tl.where(here, end, first)
        end += tl.cdiv(tl.cast(sizes[i], tl.int64), BLOCK).to(tl.int32)
    start = (block - first).to(tl.int64) * BLOCK
    at = tl.arange(0, BLOCK)
    inside = at < tl.minimum(size - start, BLOCK).to(tl.int32)
    score = tl.load(tl.multiple_of(tensor + start, 16) + at, mask=inside, other=0)
    digit = magnitude(score) >> SHIFT
    inside &= digit >> BITS == tl.load(state).to(digit.dtype)
    found = tl.histogram((digit & (1 << BITS) - 1).to(tl.int32), 1 << BITS, mask=inside).to(tl.int64)
    tl.atomic_add(counts + tl.arange(0, 1 << BITS), found, mask=found > 0, sem="relaxed")


@triton.jit(do_not_specialize=["rank"], do_not_specialize_on_alignment=["threshold"])
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
