"""Instructions of NVIDIA's GPUs that Triton does not choose by itself."""

import torch
import triton
import triton.language as tl

from . import version

PTX: tl.constexpr = tl.constexpr(torch.version.hip is None and not triton.knobs.runtime.interpret)


def _philox_code() -> str:
    """Ten rounds on the words $4 to $7, whose result is $0 to $3. From $8 on are two keys for each round."""
    rounds = (
        f"mul.wide.u32 p, a, 0xD2511F53; mul.wide.u32 q, c, 0xCD9E8D57; xor.b32 b, b, ${i}; xor.b32 d, d, ${i + 1};"
        "mov.b64 {low, high}, q; xor.b32 a, high, b; mov.b32 b, low;"
        "mov.b64 {low, high}, p; xor.b32 c, high, d; mov.b32 d, low;"
        for i in range(8, 28, 2)
    )
    return (
        "{ .reg .b32 a, b, c, d, low, high; .reg .b64 p, q;"
        "mov.b32 a, $4; mov.b32 b, $5; mov.b32 c, $6; mov.b32 d, $7;"
        + "".join(rounds)
        + "mov.b32 $0, a; mov.b32 $1, b; mov.b32 $2, c; mov.b32 $3, d; }"
    )


PHILOX: tl.constexpr = tl.constexpr(_philox_code())
PHILOX_OPERANDS: tl.constexpr = tl.constexpr("=r,=r,=r,=r" + 24 * ",r")


@triton.jit
def philox_rounds(words, keys):
    """Ten rounds of Philox on four words, with the two keys of each round.

    This is one operation in place of 180. The time of Triton's pass *coalesce* grows with the square of their number.
    See `has_few_operations`.
    """
    return tl.inline_asm_elementwise(
        PHILOX, PHILOX_OPERANDS, words + keys, dtype=(tl.uint32, tl.uint32, tl.uint32, tl.uint32), is_pure=True, pack=1
    )


@triton.jit
def set_bits(words):
    """Set bits of each word, as int32."""
    return tl.inline_asm_elementwise("popc.b32 $0, $1;", "=r,r", [words], dtype=tl.int32, is_pure=True, pack=1)


@tl.core.builtin
def has_few_operations(_semantic=None) -> tl.constexpr:
    """Whether kernels use `philox_rounds`: on Hopper, from Triton 3.9 on.

    Elsewhere Triton takes the one operation for a cheap one, and computes it again in place of a change of layout.
    """
    return tl.constexpr(version() >= (3, 9) and _semantic.builder.options.arch == "sm90")


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
