"""Instructions of NVIDIA's GPUs that Triton does not choose by itself."""

import torch
import triton
import triton.language as tl

from . import FENCED, version
from .tiles import Machine

PTX: tl.constexpr = tl.constexpr(torch.version.hip is None and not triton.knobs.runtime.interpret)


def needs_fences(machine: Machine, rows: int) -> bool:
    """Whether products of tiles of so many rows need `fenced`: those that Hopper computes asynchronously, 64 at a time.

    On Blackwell, Triton's versions that would need it are refused.
    """
    return PTX.value and machine.generation == 9 and rows >= 64 and version() < FENCED


@triton.jit
def fenced(words, step):
    """``words``, after a fence: a product that depends on them reads what was loaded before this call.

    ``step`` is the number of the loop's step: the fence is computed from it, and thus not moved out of the loop.
    """
    code: tl.constexpr = "fence.proxy.async.shared::cta; and.b32 $0, $1, 0;"
    zero = tl.inline_asm_elementwise(code, "=r,r,~{memory}", [step], dtype=tl.int32, is_pure=False, pack=1)
    return words | zero.to(words.dtype)


@triton.jit
def shifted_left(words, places):
    """``words << places`` for places that are constant in each thread: a product by a power of two.

    ptxas executes shifts in the pipe of logic, which the expansion of weights fills, and products in that of floats.
    """
    if PTX:
        factor = (tl.full(places.shape, 1, tl.uint32) << places.to(tl.uint32)).to(tl.uint32)
        code: tl.constexpr = "mul.lo.u32 $0, $1, $2;"
        return tl.inline_asm_elementwise(code, "=r,r,r", [words, factor], dtype=tl.uint32, is_pure=True, pack=1)
    else:
        return words << places.to(tl.uint32)


@triton.jit
def rounded_to_tf32(x):
    """float32 to the nearest float with ten bits of fraction, and NaN to NaN; the interpreter multiplies exactly."""
    if PTX:
        code: tl.constexpr = "cvt.rna.tf32.f32 $0, $1;"
        return tl.inline_asm_elementwise(code, "=r,r", [x], dtype=tl.float32, is_pure=True, pack=1)
    else:
        return x
