"""The CPU backend: C++ kernels for every instruction set from plain C++ to AVX-512 VNNI and AMX, chosen at run time.

``SLT_CPU_ISA`` in the environment forces a lower instruction set than the best that runs here. float64 has no kernel
here.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

try:
    from ... import _cpu
except ImportError as error:
    built = any(Path(__file__).parents[2].glob("_cpu.*"))
    _cpu = None
    _why_not = str(error) if built else "the extension slt_kernels._cpu is not built: pip install -e . builds it"
else:
    _why_not = None

_misnamed = None  # invalid SLT_CPU_ISA; reported on first use
if _cpu and (_forced := os.environ.get("SLT_CPU_ISA")):
    if _forced in _cpu.instruction_sets():
        _cpu.use_instruction_set(_forced)
    else:
        _misnamed = f"SLT_CPU_ISA={_forced!r}: expected one of {', '.join(_cpu.instruction_sets())}"

_forked = False


def _after_fork() -> None:
    global _forked
    _forked = True


# GNU's OpenMP cannot start threads in a child of a process that had some: there, kernels run on one.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def threads() -> int:
    """How many threads a kernel uses."""
    return 1 if _forked else torch.get_num_threads()


def unavailable() -> str | None:
    return _why_not


def describe() -> str:
    return _misnamed or f"{_cpu.instruction_set()}, {threads()} threads (of {', '.join(_cpu.instruction_sets())})"


def supports(device: torch.device) -> bool:
    if _misnamed and device.type == "cpu":
        raise ValueError(_misnamed)
    return device.type == "cpu"


def instruction_sets() -> list[str]:
    """The instruction sets that run here, the best last."""
    return _cpu.instruction_sets()


def instruction_set() -> str:
    """The one in use."""
    return _cpu.instruction_set()


@contextmanager
def use_instruction_set(name: str) -> Iterator[None]:
    """Forces one of `instruction_sets` inside a ``with`` block, for every thread of the process.

    Raises:
        ValueError: it does not run here.
    """
    before = _cpu.instruction_set()
    _cpu.use_instruction_set(name)
    try:
        yield
    finally:
        _cpu.use_instruction_set(before)
