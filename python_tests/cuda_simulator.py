"""Runs the CUDA backend's kernels on CPU tensors, in a simulator of PTX where there is one.

Everything except the driver is the backend's own: its host code prepares launches, and nvcc compiles its kernels. The
simulator reports accesses out of bounds, races, reads of memory that was never written, and waits that are missing.
"""

import copy
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from torch import Tensor

try:
    import ptxsim
except ImportError:
    ptxsim = None

CSRC = Path(__file__).parents[1] / "csrc"
MACHINES = {80: (80, 4, 163 * 1024), 90: (90, 4, 227 * 1024)}  # few multiprocessors: grids of few blocks


def why_not_compiled() -> str | None:
    """Why kernels cannot be compiled for the simulator; None if they can."""
    if ptxsim is None:
        return "the simulator ptxsim is not importable"
    if not (os.environ.get("NVCC") or shutil.which("nvcc") or Path("/usr/local/cuda/bin/nvcc").exists()):
        return "there is no nvcc"
    return None


def why_not() -> str | None:
    """Why kernels cannot be simulated here; None if they can."""
    if reason := why_not_compiled():
        return reason
    try:
        from slt_kernels import _cuda  # noqa: F401
    except ImportError as error:
        return str(error)
    return None


class Kernels:
    """The kernels of a file, each read when it is first used: to read all takes seconds."""

    def __init__(self, ptx: str) -> None:
        header, *entries = re.split(r"(?=^\.visible \.entry )", ptx, flags=re.MULTILINE)
        files = "\n".join(re.findall(r"^\s*\.file.*", entries[-1], re.MULTILINE))
        entries[-1] = re.split(r"^\s*\.(?:file|section)\b", entries[-1], flags=re.MULTILINE)[0]
        self._texts = {entry.split("(")[0].split()[-1]: f"{header}{entry}{files}\n" for entry in entries}
        self._modules: dict[str, ptxsim.Module] = {}
        self._replaced: dict[str, ptxsim.Module] = {}

    def module(self, kernel: str) -> "ptxsim.Module":
        """A module of one kernel."""
        if kernel in self._replaced:
            return self._replaced[kernel]
        if kernel not in self._modules:
            # Lines of .loc take a part of the time of reading; `lines` keeps them, so that errors name the source.
            text = self._texts[kernel]
            blank = re.sub(r"^[ \t]*\.loc\b.*", lambda line: " " * len(line[0]), text, flags=re.MULTILINE)
            self._modules[kernel] = module = ptxsim.load(blank)
            module.lines = text.split("\n")
        return self._modules[kernel]

    def replaced(self, kernel: str, module: "ptxsim.Module") -> "Kernels":
        """The same kernels, except one in another form."""
        kernels = copy.copy(self)
        kernels._replaced = {kernel: module}
        return kernels

    def launch(self, kernel: str, *arguments: object, **options: object) -> "ptxsim.Result":
        return self.module(kernel).launch(kernel, *arguments, **options)


@cache
def compiled(file: str, arch: str) -> Kernels:
    """The kernels of a file of csrc/cuda, compiled for an architecture.

    ``SLT_KEPT_PTX`` may name the folder in which the build that is tested kept its PTX of sm_90a (``nvcc --keep``).
    """
    if (kept := os.environ.get("SLT_KEPT_PTX")) and arch == "sm_90a" and Path(kept, f"{file}.ptx").exists():
        return Kernels(Path(kept, f"{file}.ptx").read_text())
    options = ["-std=c++20", "-fmad=false"]  # as setup.py has them
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ptxsim.cuda, "load", str)  # only the text
        return Kernels(ptxsim.compile_cuda(CSRC / "cuda" / f"{file}.cu", arch=arch, includes=[CSRC], options=options))


def _compile(file: str, arch: str) -> None:
    compiled(file, arch)


def _engine() -> None:
    """Compiles the simulator, which takes longer than the kernels of any file."""
    from ptxsim.engine.build import library

    library()


class Simulator:
    """Runs launches.

    Attributes:
        options: of every launch, as ``ptxsim.Module.launch`` takes them (schedule, quantum, resident).
        launches: what was launched, as `Launch.describe` returns it, with the simulator's result.
        module: compiles a file for an architecture; a test replaces it by one that injects faults.
    """

    def __init__(self, capability: int) -> None:
        self.arch = f"sm_{capability}" + "a" * (capability == 90)
        self.options: dict[str, int] = {}
        self.launches: list[dict] = []
        self.module = compiled
        self._marks: dict[int, tuple[Tensor, np.ndarray]] = {}  # of bytes that hold a value, by address
        self._launched: set[int] = set()  # addresses that kernels were given

    def enqueue(self, launch, device, *values, reads=()) -> None:
        described = launch.describe(*(v.data_ptr() if isinstance(v, Tensor) else v for v in values))
        memory = ptxsim.Memory()
        for n, tensor in enumerate({t.data_ptr(): t for t in (*values, *reads) if isinstance(t, Tensor)}.values()):
            size, at = tensor.numel() * tensor.element_size(), tensor.data_ptr()
            self._launched.add(at)
            marks = self._marks[at][1].ctypes.data if at in self._marks else 0
            memory.regions.append((at, max(size, 1), at, marks, at, at + size, f"tensor {n}"))
        if described["blocks"] == 0:
            return
        result = self.module(described["file"], self.arch).launch(
            described["kernel"],
            described["blocks"],
            described["threads"],
            [described["arguments"]],
            described["shared"],
            memory=memory,
            cluster=described["cluster"] if described["cluster"] > 1 else None,
            **self.options,
        )
        self.launches.append({**described, "result": result})
        if result.findings:
            raise ptxsim.SimulationError(result.explain())

    def unwritten(self, tensor: Tensor) -> Tensor:
        """Marks a tensor's bytes as holding no value."""
        if tensor.numel():
            self._launched.discard(tensor.data_ptr())
            self._marks[tensor.data_ptr()] = tensor, np.zeros(tensor.numel() * tensor.element_size(), np.uint8)
        return tensor

    def written_elsewhere(self, tensor: Tensor) -> None:
        """Takes the marks from a tensor that no kernel was given: PyTorch wrote it."""
        if tensor.data_ptr() not in self._launched:
            self._marks.pop(tensor.data_ptr(), None)

    def never_written(self, tensor: Tensor) -> int:
        """How many bytes of a tensor that `unwritten` marked no kernel wrote."""
        marks = self._marks.get(tensor.data_ptr())
        return 0 if marks is None else int((marks[1] == 0).sum())


@contextmanager
def simulated(capability: int) -> Iterator[Simulator]:
    """The CUDA backend on CPU tensors, as on a device of that compute capability (80 or 90).

    Outputs and workspaces hold no value until a kernel writes them.
    """
    from slt_kernels.backends import cuda, registry
    from slt_kernels.backends.cuda import launch

    simulator = Simulator(capability)
    make_outputs, run_first = registry.make_outputs, registry._run_first

    def marked_outputs(operation, arguments):
        outputs = make_outputs(operation, arguments)
        for output in _tensors(outputs):
            simulator.unwritten(output)
        return outputs

    def run_marked(operation, candidates, arguments):
        outputs = run_first(operation, candidates, arguments)
        for output in _tensors(outputs):
            simulator.written_elsewhere(output)
        return outputs

    make_workspace = launch.workspace
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cuda, "unavailable", lambda: None)
        patch.setattr(cuda, "supports", lambda device: device.type == "cpu")
        patch.setattr(registry, "make_outputs", marked_outputs)
        patch.setattr(registry, "_run_first", run_marked)
        patch.setattr(launch, "machine", lambda device: launch.Machine(*MACHINES[capability]))
        patch.setattr(launch, "enqueue", simulator.enqueue)
        patch.setattr(launch, "workspace", lambda *arguments: simulator.unwritten(make_workspace(*arguments)))
        yield simulator


def _tensors(outputs: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


# Compiles all kernels for the tests, each once: their processes would do it beside each other. Needs no built package.
if __name__ == "__main__":
    from concurrent.futures import ProcessPoolExecutor
    from itertools import product

    if why_not_compiled() is None:
        files = sorted(path.stem for path in (CSRC / "cuda").glob("*.cu"))
        with ProcessPoolExecutor() as pool:
            pool.submit(_engine)
            list(pool.map(_compile, *zip(*product(files, ("sm_80", "sm_90a")), strict=True)))
