"""Imports Triton, and the Triton backend's kernels, without a GPU: as interpreted functions, or for the simulator.

Triton decides that at its import and where a kernel is defined, so `conftest` imports this file first. Afterwards the
environment is as before: the other tests and their processes have no Triton backend.

With ``SLT_SIMULATED=90`` (or 80) in the environment the kernels are compiled for that compute capability as for a GPU,
and launches go to a simulator of PTX, ptxsim: see `test_triton_simulated`.
"""

import os
import re
from collections import Counter
from importlib.metadata import version
from importlib.util import find_spec

import pytest
import torch

INSTALLED = find_spec("triton") is not None
SIMULATED = int(os.environ.get("SLT_SIMULATED", "0"))
INTERPRETED = INSTALLED and not SIMULATED and not torch.cuda.is_available()
SIMULATOR = None


def release(package: str) -> tuple[int, ...]:
    return tuple(map(int, version(package).split(".")[:2]))


WHY_NOT = None  # the backend cannot be tested
if not INSTALLED:
    WHY_NOT = "triton is not installed"
elif INTERPRETED and release("triton") < (3, 9) and release("numpy") >= (2, 4):
    WHY_NOT = "the interpreter of Triton before 3.9 needs NumPy before 2.4"

if SIMULATED:
    from ptxsim.triton_driver import install

    SIMULATOR = install(SIMULATED)
    SIMULATOR.options.update(resident=2, schedule=7, quantum=50)
    _load = SIMULATOR.ptx

    def _without_unused_operands(key: object, _: object, ptx: str) -> object:
        """The simulator calls a permutation undefined if an operand is. But LLVM leaves those whose bytes it does not
        use: the second, if no byte of it is selected, and registers that nothing writes.
        """
        ptx = re.sub(r"(prmt\.b32 \s*%r\d+, (%r\d+)), %r\d+, (0x[0-3]{4}U)", r"\1, \2, \3", ptx)
        uses = Counter(re.findall(r"%r\d+", ptx))
        permuted = Counter(r for pair in re.findall(r"prmt\.b32 \s*%r\d+, (%r\d+), (%r\d+),", ptx) for r in pair)
        unwritten = {r for r, count in permuted.items() if uses[r] == count}
        return _load(key, None, re.sub(r"%r\d+", lambda r: "0" if r[0] in unwritten else r[0], ptx))

    SIMULATOR.ptx = _without_unused_operands

if INTERPRETED:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_INTERPRET", "1")
        from slt_kernels.backends import registry

        registry.kernels("triton", "select")  # imports all of them
