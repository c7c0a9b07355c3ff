"""Imports Triton, and the Triton backend's kernels, without a GPU: as interpreted functions, or for the simulator.

Triton decides that at its import and where a kernel is defined, so `conftest` imports this file first. Afterwards the
environment is as before: the other tests and their processes have no Triton backend.

With ``SLT_SIMULATED=90`` (or 80) in the environment the kernels are compiled for that compute capability as for a GPU,
and launches go to a simulator of PTX, ptxsim: see `test_triton_simulated`.
"""

import os
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace as replace_fields
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


def _spare_the_interpreter_work() -> None:
    """Half of its time, without which it computes the same.

    It puts its functions in the place of Triton's again at each call inside a kernel: here once per module and launch.
    And it adds twice to find overflows, which it reports in its debugging mode alone.
    """
    from triton.runtime import interpreter

    replace, modules = interpreter._patch_lang, set()

    def replace_once(function: Callable) -> object:
        if function.__module__ in modules:
            return None
        scope = replace(function)
        if not modules:  # the launch's own, which it restores
            restore = scope.restore
            scope.restore = lambda: (modules.clear(), restore())
        modules.add(function.__module__)
        return scope

    interpreter._patch_lang = replace_once
    builder = interpreter.interpreter_builder
    builder.options = replace_fields(builder.options, sanitize_overflow=False)


if INTERPRETED:
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("TRITON_INTERPRET", "1")
        _spare_the_interpreter_work()
        from slt_kernels.backends import registry

        registry.kernels("triton", "select")  # imports all of them
