"""Upper bounds of this machine: bandwidth and products as PyTorch reaches them, and the time to generate weights."""

import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from rounds import timed

from slt_kernels import backends

cpu = backends.on("cpu")

SOURCES = Path(__file__).parent

# Compiler flags of the programs that measure one bound each. The first is compiled for one instruction set.
_FLAGS = {
    "cpu_generator": "-ffp-contract=off -mavx2 -mfma -mf16c -mbmi -mbmi2 -mavx512f -mavx512bw -mavx512dq -mavx512vl "
    "-mprefer-vector-width=512 -mavx512vnni -mavx512vbmi -mgfni -DSLT_ISA=avx512vnni",
    "cpu_tiles": "-mavx512f -mamx-tile -mamx-int8",
}


def compiler(program: str) -> list[str]:
    """The command that compiles a program, without its source."""
    return ["c++", "-std=c++20", f"-I{SOURCES.parent / 'csrc'}", *shlex.split(_FLAGS[program])]


def ceilings(seconds: float) -> dict[str, Any]:
    """The best of several copies and products: bytes, and operations (two per multiply-add), per second."""

    def best(call) -> float:
        call()
        times, end = [], time.perf_counter() + seconds
        while len(times) < 3 or time.perf_counter() < end:
            times.append(timed(call))
        return min(times)

    result = {}
    # The size of a dense weight, and one larger than any cache.
    for name, size in (("copy_67MB", 1 << 24), ("copy_1GB", 1 << 28)):
        source = torch.ones(size)
        to = torch.empty_like(source)
        result[name] = 2 * source.nbytes / best(lambda: to.copy_(source))
    for dtype in (torch.float32, torch.bfloat16):
        a = torch.randn(2048, 2048).to(dtype)
        pixels, kernel = torch.randn(8, 512, 16, 16).to(dtype), torch.randn(512, 512, 3, 3).to(dtype)
        pixels, kernel = (t.contiguous(memory_format=torch.channels_last) for t in (pixels, kernel))
        product = 2 * 2048**3 / best(lambda: a @ a)
        convolved = 2 * 8 * 512 * 512 * 9 * 256 / best(lambda: torch.conv2d(pixels, kernel, padding=1))
        result[f"product_{str(dtype).removeprefix('torch.')}"] = max(product, convolved)
    return result


def generator() -> dict[str, Any]:
    """The lines of `bench/cpu_generator.cpp`: nanoseconds and cycles of making 2048 weights on one thread."""
    return _lines("cpu_generator", "avx512vnni", "AVX-512 VNNI")


def tiles() -> dict[str, Any]:
    """The lines of `bench/cpu_tiles.cpp`: nanoseconds and cycles of a product of tiles and of loading one."""
    return _lines("cpu_tiles", "amx", "AMX")


def _lines(program: str, instruction_set: str, named: str) -> dict[str, Any]:
    if instruction_set not in cpu.instruction_sets() or shutil.which("c++") is None:
        return {"unavailable": f"it needs c++ and {named}"}
    source = SOURCES / f"{program}.cpp"
    with tempfile.TemporaryDirectory() as folder:
        built = str(Path(folder, program))
        subprocess.run([*compiler(program), "-O3", str(source), "-o", built], check=True)
        printed = subprocess.run([built], check=True, capture_output=True, text=True).stdout
    lines = re.findall(r"^(.*?) +([\d.]+) ns +(\d+) cycles$", printed, re.MULTILINE)
    return {"lines": [{"what": name, "ns": float(ns), "cycles": int(cycles)} for name, ns, cycles in lines]}


if __name__ == "__main__":
    print(ceilings(1.0), generator(), tiles(), sep="\n", file=sys.stdout)
