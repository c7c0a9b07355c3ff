"""Are faults in the CPU kernels seen? Makes ten, one at a time, and runs the tests that should fail.

    python python_tests/mutants.py [NAME...]

Needs a C++20 compiler, and takes some minutes. Works in a copy of the package, which it builds for the instruction sets
that SLT_ISAS names, by default scalar alone. Exit status 1 if a fault is not seen; an error if the tests fail without
one.
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
    """A fault: in a file of csrc/cpu, `right` becomes `wrong`, which these tests should see."""

    name: str
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...]  # a file of python_tests, and what selects some of its tests


MUTANTS = (
    Mutant(
        "digits joined with a wrong shift",
        "gemm/epilogue.h",
        "s = s * (1 << BITS) + tile[d * BLOCK + l];",
        "s = s * (1 << (BITS - 1)) + tile[d * BLOCK + l];",
        ("test_cpu_products.py", "-k", "test_linear_forward and 17-257"),
    ),
    Mutant(
        "pitches of vectors and planes swapped",
        "gemm/gemm_dot.h",
        "4 * q, x.vector_pitch, x.plane_pitch}",
        "4 * q, x.plane_pitch, x.vector_pitch}",
        ("test_cpu_products.py", "-k", "test_linear_forward and 17-257"),
    ),
    Mutant(
        "a long sum rounded twice",
        "gemm/epilogue.h",
        "sum[l] = float(total[l] - correction);",
        "sum[l] = double(total[l] - correction);",
        ("test_cpu_products.py", "-k", "rounded_once"),
    ),
    Mutant(
        "a pixel past the right edge",
        "conv/im2col.h",
        "h < 0 || h >= x.height || w < 0 || w >= x.width",
        "h < 0 || h >= x.height || w < 0 || w > x.width",
        ("test_cpu_products.py", "-k", "test_conv2d_forward and many-outputs"),
    ),
    Mutant(
        "no last row of a stride's remainder",
        "ops/conv2d_grad_input.cpp",
        "grid = {least(ceil_div(a.dx.height - first_h, window.stride_h), height),",
        "grid = {least((a.dx.height - first_h) / window.stride_h, height),",
        ("test_cpu_products.py", "-k", "test_conv2d_grad_input and stride"),
    ),
    Mutant(
        "sums of earlier steps overwritten",
        "wgrad/wgrad_fma.h",
        "count, rows, first > 0,",
        "count, rows, first > depth,",
        ("test_cpu_grad_scores.py", "-k", "test_linear and 203-300"),
    ),
    Mutant(
        "the mask applied to one bit of two",
        "weights/generate.h",
        "high = keep & (SIGNED_BYTES ? sign : ~sign),",
        "high = (SIGNED_BYTES ? sign : ~sign),",
        ("test_cpu_products.py", "-k", "test_materialize"),
    ),
    Mutant(
        "the magnitude after the selected one",
        "ops/select.cpp",
        "if (interval.shift == 0) return interval.low;",
        "if (interval.shift == 0) return interval.low + 1;",
        ("test_cpu_masks.py", "-k", "test_select_all_ranks"),
    ),
    Mutant(
        "scores at the end of the interval kept",
        "ops/pack.cpp",
        "(U32)(v < end)",
        "(U32)(v <= end)",
        ("test_cpu_masks.py", "-k", "test_masks"),
    ),
    Mutant(
        "locked weights of a compact mask dropped",
        "ops/embedding.cpp",
        "word.free) | word.locked;",
        "word.free);",
        ("test_embedding.py", "-k", "test_rows_of_the_materialized_table"),
    ),
)


def main(names: list[str]) -> int:
    chosen = [mutant for mutant in MUTANTS if not names or mutant.name in names]
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder)
        for name in ("csrc", "slt_kernels", "python_tests"):
            # Neither the extensions of this build, nor the sources of CUDA, which are not needed.
            left_out = shutil.ignore_patterns("*.so", "_cuda_kernels", "*.cu", "cuda_module.cpp", "__pycache__")
            shutil.copytree(ROOT / name, copy / name, ignore=left_out)
        for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        build(copy)
        for tests in dict.fromkeys(mutant.tests for mutant in chosen):
            if status := run_tests(copy, tests):
                raise RuntimeError(f"without a fault, pytest {' '.join(tests)}: exit status {status}, expected 0")
        missed = [mutant.name for mutant in chosen if not seen(mutant, copy)]
    print(f"{len(chosen) - len(missed)} of {len(chosen)} faults seen")
    return int(bool(missed))


def seen(mutant: Mutant, copy: Path) -> bool:
    """Whether the tests fail with the fault, crash, or do not end."""
    started, path = time.monotonic(), copy / "csrc/cpu" / mutant.file
    text = path.read_text()
    if text.count(mutant.right) != 1:
        raise ValueError(f"csrc/cpu/{mutant.file}: expected {mutant.right!r} once, found {text.count(mutant.right)}")
    path.write_text(text.replace(mutant.right, mutant.wrong))
    build(copy)
    status = run_tests(copy, mutant.tests)
    path.write_text(text)
    if status > 1:
        raise RuntimeError(f"{mutant.name}: pytest's exit status is {status}, expected 0 or 1")
    print(f"{'seen' if status else 'NOT SEEN'}: {mutant.name}, csrc/cpu/{mutant.file} ", end="")
    print(f"({time.monotonic() - started:.0f} s)", flush=True)
    return status != 0


def environment(copy: Path) -> dict[str, str]:
    return {"SLT_ISAS": "scalar", **os.environ, "PYTHONPATH": str(copy)}


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
