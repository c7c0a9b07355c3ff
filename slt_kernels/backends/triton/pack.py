"""Pack: scores and a threshold to the words of a mask, and how many weights it keeps, all on the device."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from ...source import Source
from .arguments import kernel
from .expand import expand
from .launch import Launch, at_16_bytes, blocks, free_starts, prepared
from .magnitudes import exceeds
from .words import freeze_calls, popcount

_WORDS_PER_PROGRAM = 128


@kernel("pack")
def pack(outputs: tuple[Tensor, Tensor], scores: Tensor, threshold: Tensor, source: Source, compact: bool) -> None:
    mask, kept = outputs
    scores, device = at_16_bytes(scores), scores.device
    count = blocks(scores.numel(), 32)
    # Where nothing is frozen and rows are whole words, both forms are the same words.
    direct = compact or (freeze_calls(source) == 0 and source.fan % 32 == 0)
    words = mask if direct else torch.empty(count, dtype=torch.int32, device=device)
    counts = torch.empty(blocks(count, _WORDS_PER_PROGRAM), dtype=torch.int64, device=device)
    _launch(scores.numel(), scores.dtype, device)(scores, threshold, words, counts)
    torch.add(counts.sum(), free_starts(source, device).locked, out=kept)
    if not direct:
        expand(mask, words, source)


@prepared
def _launch(count: int, dtype: torch.dtype, device: torch.device) -> Launch:
    programs = blocks(blocks(count, 32), _WORDS_PER_PROGRAM)
    return Launch(pack_kernel, programs, device, count, W=_WORDS_PER_PROGRAM)


@triton.jit(do_not_specialize=["count"], do_not_specialize_on_alignment=["threshold"])
def pack_kernel(scores, threshold, mask, kept, count: "i64", W: tl.constexpr):
    """A program reads 32 W scores and writes W words of the compact mask."""
    word = tl.program_id(0).to(tl.int64) * W + tl.arange(0, W)
    bit = tl.arange(0, 32)
    at = 32 * word[:, None] + bit[None, :]
    score = tl.load(scores + at, mask=at < count, other=0)  # [W, 32]
    keep = exceeds(score, tl.load(threshold)) & (at < count)
    words = tl.sum(keep.to(tl.uint32) << bit[None, :].to(tl.uint32), axis=1)  # the bits are distinct: the sum is an OR
    tl.store(mask + word, words.to(tl.int32, bitcast=True), mask=32 * word < count)
    tl.store(kept + tl.program_id(0), tl.sum(popcount(words)).to(tl.int64))
