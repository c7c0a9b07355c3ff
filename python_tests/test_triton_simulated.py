"""The Triton backend's compiled kernels, executed: `test_triton` in a simulator of PTX, for sm_80 and sm_90.

Triton specializes and compiles as on a GPU of that architecture, to PTX. The simulator runs it on CPU tensors, and a
test fails on an access out of bounds, a race, a value that was never written, or a missing proxy fence. 16-bit inputs
are bfloat16. These are the tests that compile few kernels; all of them, in many minutes:

    SLT_SIMULATED=90 python -m pytest -n 0 python_tests/test_triton.py
"""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from slt_kernels import backends

TESTS = Path(__file__).with_name("test_triton.py")
NEEDS_3_9 = "test_tf32_operands_have_no_bank_conflicts[high]"
CASES = {
    80: (
        "test_select[(100, 1, 70)-torch.float32]",
        "test_linear[1x127x1-signed_constant-float32]",
        "test_tf32_operands_are_rounded",
        "test_conv2d[groups-dilation-signed_constant-bfloat16]",
        "test_conv2d[depthwise-signed_constant-float32]",
    ),
    90: (
        "test_pack_and_expand[67-33-Freeze(prune=0.35, lock=0.35)]",
        "test_linear[17x129x3-signed_constant-bfloat16]",
        "test_two_digits[torch.float32-signed_constant]",
        "test_large_tiles[9-2]",
        NEEDS_3_9,
        "test_embedding[3x31x17-signed_constant-bfloat16]",
    ),
}

pytestmark = [
    pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed"),
    pytest.mark.skipif(find_spec("ptxsim") is None, reason="the simulator ptxsim is not importable"),
]


@pytest.mark.parametrize("arch", CASES)
def test_compiled_kernels(arch):
    """In a process of its own: Triton has one driver per process, and interprets in the process of `test_triton`."""
    tests = [f"{TESTS}::{name}" for name in CASES[arch] if name != NEEDS_3_9 or backends.triton.version() >= (3, 9)]
    options = ["-n", "0", "-p", "no:cacheprovider"]
    environment = os.environ | {"SLT_SIMULATED": str(arch)}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *tests], env=environment, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout[-5000:] + run.stderr[-2000:]
    assert f"{len(tests)} passed" in run.stdout, run.stdout
