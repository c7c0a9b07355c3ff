"""Operands of TF32 products on Hopper: tiles [M, N], in memory with N contiguous, for sums over M.

Hopper's tensor cores read TF32 operands from shared memory with M contiguous only, so that a tile is transposed on its
way. Read row by row, a warp stores 128 values of one m, all in two of 32 banks. Here a tile is read in four quarters,
each a tensor of more dimensions whose order is chosen so that no access of shared memory conflicts:

- a warp reads 32 neighbouring n of four m, which are four whole lines of the cache, and a thread four n of one m;
- the quarters of the second operand are m, m + 1, m + 2 and m + 3: a thread then stores four m at once;
- the first operand is read from shared memory as registers of the product, where a quarter is M / 4 neighbouring m.
"""

import triton
import triton.language as tl

from .words import join4


@triton.jit
def neighbours(N: tl.constexpr):
    """The n of each quarter, [N / 32, 1, 4, 1, 1, 8]."""
    block = tl.arange(0, N // 32)[:, None, None, None, None, None]
    eight = tl.arange(0, 4)[None, None, :, None, None, None]
    return 32 * block + 8 * eight + tl.arange(0, 8)[None, None, None, None, None, :]


@triton.jit
def first_places(i: tl.constexpr, M: tl.constexpr):
    """The m of quarter i of the first operand, [1, M / 16, 1, 4, 1, 1].

    Without the dimension of one Triton would take the quarter for an operand that it can copy in the product's order,
    four bytes at a time.
    """
    four = tl.arange(0, M // 16)[None, :, None, None, None, None]
    return M // 4 * i + 4 * four + tl.arange(0, 4)[None, None, None, :, None, None]


@triton.jit
def second_places(i: tl.constexpr, M: tl.constexpr):
    """The m of quarter i of the second operand, [1, M / 16, 1, 4, 1, 1]."""
    sixteen = tl.arange(0, M // 16)[None, :, None, None, None, None]
    return i + 16 * sixteen + 4 * tl.arange(0, 4)[None, None, None, :, None, None]


@triton.jit
def first_operand(quarters, M: tl.constexpr, N: tl.constexpr):
    """Four quarters to the tile [M, N]."""
    return join4(quarters[0], quarters[1], quarters[2], quarters[3]).permute(6, 1, 3, 0, 2, 4, 5).reshape([M, N])


@triton.jit
def second_operand(quarters, M: tl.constexpr, N: tl.constexpr):
    """Four quarters to the tile [M, N]."""
    return join4(quarters[0], quarters[1], quarters[2], quarters[3]).permute(1, 3, 6, 0, 2, 4, 5).reshape([M, N])
