"""Results do not depend on the rounding and denormal mode of the threads that make them."""

import float_control
import torch
from processes import run_script

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
    run = run_script(float_control.__file__, str(tmp_path / "expected"))
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [f"{name} []" for name in expected]
