"""Error of float32 grad_scores on tensor cores that truncate their sums, simulated on any machine.

    python bench/truncated_sums.py

Three TF32 products make a float32 one. A step sums 8 of them into a float32 that is rounded toward zero, so errors
of one sign add up over a long sum. The Triton kernel starts new sums for each block of columns, and
adds blocks in float32, rounded to nearest. Prints the error of both ways in relative norm, on normal inputs.
"""

import numpy as np

SIZE, STEP, BLOCK = 48, 8, 32  # rows and columns of the result; columns of a step, and of a block


def tf32(a: np.ndarray) -> np.ndarray:
    """To the nearest number with 10 bits after the point."""
    bits = a.view(np.uint32)
    return ((bits + 0xFFF + (bits >> 13 & 1)) & np.uint32(0xFFFFE000)).view(np.float32)


def truncate(a: np.ndarray) -> np.ndarray:
    """float64 to float32, toward zero."""
    near = a.astype(np.float32)
    return np.where(np.abs(near) > np.abs(a), np.nextafter(near, np.float32(0)), near)


def error(columns: int, anew: bool) -> float:
    random = np.random.default_rng(0)
    a = random.standard_normal((SIZE, columns)).astype(np.float32)
    b = random.standard_normal((columns, SIZE)).astype(np.float32)
    high_a, high_b = tf32(a), tf32(b)
    low_a, low_b = tf32(a - high_a), tf32(b - high_b)
    total = part = np.zeros((SIZE, SIZE), np.float32)
    for block in range(0, columns, BLOCK):
        for x, y in ((low_a, high_b), (high_a, low_b), (high_a, high_b)):
            for k in range(block, min(block + BLOCK, columns), STEP):
                product = x[:, k : k + STEP].astype(np.float64) @ y[k : k + STEP].astype(np.float64)
                part = truncate(part + product)
        if anew:
            total, part = total + part, np.zeros_like(part)
    exact = a.astype(np.float64) @ b.astype(np.float64)
    return float(np.linalg.norm(total + part - exact) / np.linalg.norm(exact))


if __name__ == "__main__":
    print("columns   blocks of 32   one sum")
    for columns in (64, 1024, 16392):
        print(f"{columns:7}   {error(columns, True):12.1e}   {error(columns, False):7.1e}")
