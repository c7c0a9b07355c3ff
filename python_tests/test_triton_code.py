"""The Triton backend without running it: its import, and the machine code of its kernels, compiled ahead of time.

Triton interprets in the process of `test_triton`, so what compiles has processes of its own.
"""

from importlib.util import find_spec
from pathlib import Path
from subprocess import CompletedProcess
from types import SimpleNamespace

import pytest
import torch
from processes import run_forked, run_script

from slt_kernels import backends
from slt_kernels.backends import triton

BENCH = Path(__file__).parent.parent / "bench"
installed = pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")


def run_with_bench(script: str) -> None:
    check(run_forked(f"import sys; sys.path.insert(0, {str(BENCH)!r})\n{script}"))


def check(run: CompletedProcess) -> None:
    assert run.returncode == 0, run.stdout + run.stderr[-2000:]


@installed
def test_machine_code_is_within_its_budget():
    cases = ("forward bf16", "forward bf16, in parts", "grad_input bf16, 257 rows")
    check(run_script(BENCH / "triton_sass.py", "--check", "--arch", "90", "--only", *cases))


@installed
def test_a_budget_only_tightens():
    script = """if True:
        from triton_sass import over_budget, tightened
        limits = {"spills": 4, "programs": 2, "alu": 9}
        assert over_budget("a", {}, {}) == ["is not in the budget"]
        assert over_budget("a", limits, {"a": limits}) == []
        result = {"spills": 5, "programs": 1, "alu": 8, "per_weight": 2.5}
        assert over_budget("a", result, {"a": limits}) == ["spills 5, budget 4", "programs 1, budget 2"]
        assert tightened(limits, result) == limits | {"alu": 8}, "and no limit per weight, which it had not"
        assert tightened({}, result) == result
    """
    run_with_bench(script)


@installed
def test_partial_sums_are_stored_before_they_are_counted_on_amd():
    """A barrier does not wait for stores there. Shared memory is 64 KiB. Compiled as on ROCm."""
    script = """if True:
        import torch
        torch.version.hip = "6.4"
        from triton_sass import GPUTarget, compile_case, launched
        compiled = compile_case(launched("forward bf16, in parts", 80), GPUTarget("hip", "gfx942", 64))
        assert compiled.metadata.shared <= 65536
        code = compiled.asm["amdgcn"]
        barrier = code.rindex("s_barrier", 0, code.rindex("global_atomic_add"))
        waits = code[code.rindex("global_store", 0, barrier) : barrier]
        assert "s_waitcnt vmcnt(0)" in waits, waits
    """
    run_with_bench(script)


@installed
def test_float32_sums_are_short():
    """grad_scores adds the sums of each step's three products to the earlier ones in float32, instead of accumulating
    on tensor cores, which truncate: see bench/truncated_sums.py."""
    script = """if True:
        import re
        from triton_sass import compile_case, launched
        ir = compile_case(launched("grad_scores fp32", 90), 90).asm["ttgir"]
        sums = re.search(r"scf.yield (%\\w+)", ir).group(1)
        assert re.search(rf"{sums} = arith.addf", ir), ir
    """
    run_with_bench(script)


def test_import_leaves_triton_alone():
    code = "import sys, torch, slt_kernels; assert 'triton' not in sys.modules and not torch.cuda.is_initialized()"
    check(run_forked(code))


def test_says_why_it_is_unavailable():
    if not torch.cuda.is_available():
        assert backends.why_unavailable("triton") in ("triton is not installed", "no CUDA or ROCm device")


def test_a_folder_is_not_triton(monkeypatch):
    """The version is the module's, not the distribution's: ROCm's wheels have other names."""
    triton.unavailable.cache_clear()
    monkeypatch.setattr(triton, "find_spec", lambda name: SimpleNamespace(origin=None))
    assert triton.unavailable() == "triton is not installed"
    triton.unavailable.cache_clear()
    monkeypatch.setattr(triton, "find_spec", lambda name: SimpleNamespace(origin="triton/__init__.py"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(triton, "import_module", lambda name: SimpleNamespace(__version__="3.5.1+rocm"))
    assert triton.unavailable() == "triton 3.5.1+rocm is installed: expected 3.6 or newer"
    triton.unavailable.cache_clear()


@pytest.mark.parametrize(
    "version,refused",
    [
        ("3.9.0", {(7, 5): "T4 (compute capability 7.5): expected 8.0 or newer"}),
        (
            "3.6.0+git1",
            {(10, 0): "triton 3.6.0+git1 is installed: expected 3.7.1 or newer for T4 (compute capability 10.0)"},
        ),
        ("3.7.1", {}),
    ],
)
def test_devices_are_refused_one_by_one(monkeypatch, version, refused):
    """Before Ampere the int8 products do not compile, and on Blackwell older versions of Triton lack a fence."""
    capabilities = [(8, 0), (9, 0), (10, 0), (12, 0), *refused]
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(triton, "find_spec", lambda name: SimpleNamespace(origin="triton/__init__.py"))
    monkeypatch.setattr(triton, "import_module", lambda name: SimpleNamespace(__version__=version))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "T4")
    caches = (triton.unavailable, triton._why_not_on)
    for capability in capabilities:
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index, found=capability: found)
        for function in caches:
            function.cache_clear()
        assert triton.unavailable() == refused.get(capability)
        assert triton.supports(torch.device("cuda", 0)) == (capability not in refused)
    for function in caches:
        function.cache_clear()
