"""Are faults in the kernels seen? Makes them one at a time, and runs the tests that should fail.

    python python_tests/mutants.py            all, some 15 minutes
    python python_tests/mutants.py NAME...    those that are named

The CPU kernels need a C++20 compiler, and are built in a copy of the package for the instruction sets that SLT_ISAS
names, by default scalar alone. The CUDA kernels need nvcc and the simulator, and those of Triton its interpreter: their
faults are made in a copy of the package as it is built. Exit status 1 if a fault is not seen; an error if the tests
fail without one.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TIMEOUT = 300  # seconds, of the tests of one fault: a loop that does not end is seen


class Mutant(NamedTuple):
    """A fault: in a file of a backend's kernels, `right` becomes `wrong`, which these tests should see."""

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]  # a file of python_tests, and what selects some of its tests


MUTANTS = (
    Mutant(
        "digits joined with a wrong shift",
        "csrc/cpu/gemm/epilogue.h",
        "s = s * (1 << BITS) + tile[d * BLOCK + l];",
        "s = s * (1 << (BITS - 1)) + tile[d * BLOCK + l];",
        ("test_cpu_products.py", "-k", "test_linear_forward and 17-257"),
    ),
    Mutant(
        "pitches of vectors and planes swapped",
        "csrc/cpu/gemm/gemm_dot.h",
        "4 * q, x.vector_pitch, x.plane_pitch}",
        "4 * q, x.plane_pitch, x.vector_pitch}",
        ("test_cpu_products.py", "-k", "test_linear_forward and 17-257"),
    ),
    Mutant(
        "a long sum rounded twice",
        "csrc/cpu/gemm/epilogue.h",
        "sum[l] = float(total[l] - correction);",
        "sum[l] = double(total[l] - correction);",
        ("test_cpu_products.py", "-k", "rounded_once"),
    ),
    Mutant(
        "a pixel past the right edge",
        "csrc/cpu/conv/im2col.h",
        "h < 0 || h >= x.height || w < 0 || w >= x.width",
        "h < 0 || h >= x.height || w < 0 || w > x.width",
        ("test_cpu_products.py", "-k", "test_conv2d_forward and many-outputs"),
    ),
    Mutant(
        "no last row of a stride's remainder",
        "csrc/cpu/ops/conv2d_grad_input.cpp",
        "grid = {least(ceil_div(a.dx.height - first_h, window.stride_h), height),",
        "grid = {least((a.dx.height - first_h) / window.stride_h, height),",
        ("test_cpu_products.py", "-k", "test_conv2d_grad_input and stride"),
    ),
    Mutant(
        "sums of earlier steps overwritten",
        "csrc/cpu/wgrad/wgrad_fma.h",
        "count, rows, first > 0,",
        "count, rows, first > depth,",
        ("test_cpu_grad_scores.py", "-k", "test_linear and 203-300"),
    ),
    Mutant(
        "the mask applied to one bit of two",
        "csrc/cpu/weights/generate.h",
        "high = keep & (SIGNED_BYTES ? sign : ~sign),",
        "high = (SIGNED_BYTES ? sign : ~sign),",
        ("test_cpu_products.py", "-k", "test_materialize"),
    ),
    Mutant(
        "the magnitude after the selected one",
        "csrc/cpu/ops/select.cpp",
        "if (interval.shift == 0) return interval.low;",
        "if (interval.shift == 0) return interval.low + 1;",
        ("test_cpu_masks.py", "-k", "test_select_all_ranks"),
    ),
    Mutant(
        "scores at the end of the interval kept",
        "csrc/cpu/ops/pack.cpp",
        "(U32)(v < end)",
        "(U32)(v <= end)",
        ("test_cpu_masks.py", "-k", "test_masks"),
    ),
    Mutant(
        "locked weights of a compact mask dropped",
        "csrc/cpu/ops/embedding.cpp",
        "word.free) | word.locked;",
        "word.free);",
        ("test_embedding.py", "-k", "test_rows_of_the_materialized_table"),
    ),
    Mutant(
        "a tensor's last piece taken for the next one's first",
        "csrc/cuda/select.cu",
        "all.first_piece[middle] <= piece",
        "all.first_piece[middle] <= piece + 1",
        ("test_cuda_masks.py", "-k", "test_select"),
    ),
    Mutant(
        "a word past the end of the mask written",
        "csrc/cuda/pack.cu",
        "if (lane * int(WORD) < left) a.mask",
        "if (lane * int(WORD) <= left) a.mask",
        ("test_cuda_masks.py", "-k", "test_pack"),
    ),
    Mutant(
        "a score of a row past the last one read",
        "csrc/cuda/embedding.cu",
        "if (uint64_t(row) >= g.rows) continue;",
        "if (uint64_t(row) > g.rows) continue;",
        ("test_cuda_masks.py", "-k", "test_an_index_outside"),
    ),
    Mutant(
        "an element past the end of a vector read",
        "csrc/cuda/digits.cu",
        "if (first + i >= a.length) continue;",
        "if (first + i > a.length) continue;",
        ("test_cuda_product.py",),
    ),
    Mutant(
        "a pixel past the last row",
        "csrc/cuda/patches.h",
        "if (uint32_t(y) >= uint32_t(a.height)) outside |= bit;",
        "if (uint32_t(y) > uint32_t(a.height)) outside |= bit;",
        ("test_cuda_product.py", "-k", "test_conv2d"),
    ),
    Mutant(
        "the gradient of a pixel past the right edge",
        "csrc/cuda/grad_input_patches.h",
        "(pixel.x - x < uint32_t(a.out_width))",
        "(pixel.x - x <= uint32_t(a.out_width))",
        ("test_cuda_grad_input.py", "-k", "test_conv2d"),
    ),
    Mutant(
        "the sign of a negative score forgotten",
        "csrc/cuda/grad_scores_epilogue.h",
        "const bool negate = (score[n][odd] < 0) != negative[n][odd];",
        "const bool negate = negative[n][odd];",
        ("test_cuda_grad_scores.py", "-k", "test_weights_and_frozen_patterns"),
    ),
    Mutant(
        "locked weights of a compact mask dropped by the GPU",
        "csrc/cuda/words.h",
        "deposit(bits, frozen.free)) | frozen.locked;",
        "deposit(bits, frozen.free));",
        ("test_cuda_masks.py", "-k", "test_expand_and_materialize"),
    ),
    Mutant(
        "Triton: an element past the end of a vector read",
        "slt_kernels/backends/triton/fixed_point.py",
        "mask=k < length, other=0).to(tl.float64)",
        "mask=k <= length, other=0).to(tl.float64)",
        ("test_triton.py", "-k", "test_linear"),
    ),
    Mutant(
        "Triton: a pixel past the right edge",
        "slt_kernels/backends/triton/images.py",
        "below(x - image.padding_w + dx, image.width)",
        "below(x - image.padding_w + dx, image.width + 1)",
        ("test_triton.py", "-k", "test_conv2d"),
    ),
    Mutant(
        "Triton: remainders of the strides swapped",
        "slt_kernels/backends/triton/grad_input.py",
        "(left_x == tap_x % image.stride_w)",
        "(left_x == tap_x % image.stride_h)",
        ("test_triton.py", "-k", "test_conv2d"),
    ),
    Mutant(
        "Triton: bits in the next word of a compact mask not read",
        "slt_kernels/backends/triton/words.py",
        "mask=(first & 31) + counts > 32",
        "mask=(first & 31) + counts > 33",
        ("test_triton.py", "-k", "test_materialize or test_pack_and_expand"),
    ),
    Mutant(
        "Triton: the last part of a sum left out",
        "slt_kernels/backends/triton/grad_scores.py",
        "inside = (n < source.rows) & (part < parts)",
        "inside = (n < source.rows) & (part < parts - 1)",
        ("test_triton.py", "-k", "test_split_sums or test_offsets_of_64_bits"),
    ),
    Mutant(
        "Triton: an index of one past the last row taken",
        "slt_kernels/backends/triton/embedding.py",
        "valid = (wanted >= 0) & (wanted < source.rows)",
        "valid = (wanted >= 0) & (wanted <= source.rows)",
        ("test_triton.py", "-k", "test_an_index_outside"),
    ),
    Mutant(
        "Triton: scores at the threshold kept",
        "slt_kernels/backends/triton/pack.py",
        "exceeds(score, tl.load(threshold))",
        "~exceeds(tl.load(threshold), score)",
        ("test_triton.py", "-k", "test_pack"),
    ),
)


def main(names: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    of_cpu = [mutant for mutant in chosen if needs_build(mutant)]
    missed = missed_of(of_cpu) + missed_of([mutant for mutant in chosen if mutant not in of_cpu])
    print(f"{len(chosen) - len(missed)} of {len(chosen)} faults seen")
    return int(bool(missed))


def needs_build(mutant: Mutant) -> bool:
    return mutant.file.startswith("csrc/cpu/")


def missed_of(mutants: list[Mutant]) -> list[str]:
    """The names of the faults that no test sees, of mutants that all need a build of their own or none."""
    if not mutants:
        return []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        # Without the extensions of this build, and the sources of CUDA, which would be compiled.
        others = ("*.so", "_cuda_kernels", "*.cu", "cuda_module.cpp") if needs_build(mutants[0]) else ()
        for name in ("csrc", "slt_kernels", "python_tests", "bench"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "results", *others))
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        if needs_build(mutants[0]):
            build(copy)
        for tests in dict.fromkeys(mutant.tests for mutant in mutants):
            if status := run_tests(copy, tests):
                raise RuntimeError(f"without a fault, pytest {' '.join(tests)}: exit status {status}, expected 0")
        return [mutant.name for mutant in mutants if not seen(mutant, copy)]


def seen(mutant: Mutant, copy: Path) -> bool:
    """Whether the tests fail with the fault, crash, or do not end."""
    started, path = time.monotonic(), copy / mutant.file
    text = path.read_text()
    if text.count(mutant.right) != 1:
        raise ValueError(f"{mutant.file}: expected {mutant.right!r} once, found {text.count(mutant.right)}")
    path.write_text(text.replace(mutant.right, mutant.wrong))
    if needs_build(mutant):
        build(copy)
    status = run_tests(copy, mutant.tests)
    path.write_text(text)
    if status > 1:
        raise RuntimeError(f"{mutant.name}: pytest's exit status is {status}, expected 0 or 1")
    print(f"{'seen' if status else 'NOT SEEN'}: {mutant.name}, {mutant.file} ", end="")
    print(f"({time.monotonic() - started:.0f} s)", flush=True)
    return status != 0


def environment(copy: Path) -> dict[str, str]:
    path = os.pathsep.join(filter(None, (str(copy), os.environ.get("PYTHONPATH"))))
    return {"SLT_ISAS": "scalar", **os.environ, "PYTHONPATH": path}


def build(copy: Path) -> None:
    command = [sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"]
    done = subprocess.run(command, cwd=copy, env=environment(copy), capture_output=True, text=True, check=False)
    if done.returncode or not [*copy.glob("slt_kernels/_cpu.*")]:
        raise RuntimeError(f"the CPU backend does not build:\n{done.stdout}{done.stderr}")


def run_tests(copy: Path, tests: tuple[str, ...]) -> int:
    """pytest's exit status; it is negative after a crash, or if it does not end within TIMEOUT."""
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", f"python_tests/{tests[0]}", *tests[1:]]
    settings = {"cwd": copy, "env": environment(copy), "capture_output": True, "timeout": TIMEOUT}
    try:
        return subprocess.run(command, **settings, check=False).returncode
    except subprocess.TimeoutExpired:
        return -signal.SIGKILL


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
