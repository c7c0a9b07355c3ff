"""Results do not depend on the rounding and denormal mode of the threads that make them."""

import subprocess
import sys
from pathlib import Path

import float_control
import torch

from slt_kernels import backends

cpu = backends.on("cpu")


def test_flush_denormal_changes_nothing(tmp_path):
    """torch.set_flush_denormal(True) before the first product: new threads inherit it, for ever."""
    torch.set_num_threads(2)
    expected = float_control.all_results()
    for name in cpu.instruction_sets():
        for (what, a), (_, b) in zip(expected[name], expected["reference"], strict=True):
            assert what.startswith("grad_scores") or float_control.same_bits(a, b), (name, what)
    torch.save(expected, tmp_path / "expected")
    command = [sys.executable, float_control.__file__, str(tmp_path / "expected")]
    run = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parent)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [f"{name} []" for name in expected]
