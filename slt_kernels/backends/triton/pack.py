"""Pack: scores and a threshold to the words of a mask, and how many weights it keeps, all on the device."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...source import Source
from .words import popcount
from .expand import expand
from .launch import blocks, free_starts, launch
from .magnitudes import exceeds

_WORDS = 128  # of a program


def pack(scores: Tensor, threshold: Tensor, source: Source, compact: bool) -> tuple[Tensor, Tensor]:
    scores = scores.contiguous()
    words = blocks(scores.numel(), 32)
    programs = blocks(words, _WORDS)
    mask = torch.empty(words, dtype=torch.int32, device=scores.device)
    kept = torch.empty(programs, dtype=torch.int64, device=scores.device)
    launch(pack_kernel, programs, scores.device, scores, threshold, mask, kept, scores.numel(), W=_WORDS)
    kept = kept.sum() + free_starts(source, scores.device).locked
    return (mask if compact else expand(mask, source)), kept


@triton.jit(do_not_specialize=["count"])
def pack_kernel(scores, threshold, mask, kept, count: "i64", W: tl.constexpr):
    """A program reads 32 W scores and writes W words of the compact mask."""
    word = tl.program_id(0).to(tl.int64) * W + tl.arange(0, W)
    bit = tl.arange(0, 32)
    at = 32 * word[:, None] + bit[None, :]
    score = tl.load(scores + at, mask=at < count, other=0)  # [W, 32]
    keep = exceeds(score, tl.load(threshold)) & (at < count)
    words = tl.sum(keep.to(tl.uint32) << bit[None, :].to(tl.uint32), axis=1)  # no two bits meet: the sum is an OR
    tl.store(mask + word, words.to(tl.int32, bitcast=True), mask=32 * word < count)
    tl.store(kept + tl.program_id(0), tl.sum(popcount(words)).to(tl.int64))
