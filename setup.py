"""Builds the C++ CPU backend, `slt_kernels._cpu`, with ninja: every kernel once per instruction set.

The files of ``csrc/cpu/ops`` and ``csrc/cpu/isa_table.cpp`` are compiled for each instruction set that the compiler
knows, with its flags and its name as ``SLT_ISA``; where a set differs from another in one kernel alone, just that one.
The set is chosen at run time, so no other file may be compiled with those flags. Without a working C++ compiler the
package installs without the extension, and ``slt_kernels.backends.cpu`` says so. PyTorch is not needed.

``CXX`` and ``CXXFLAGS`` are honoured.
"""

import os
import platform
import shlex
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext
from setuptools.errors import CompileError

ROOT = Path(__file__).parent.resolve()
CSRC = ROOT / "csrc"
FLAGS = (
    "-std=c++20 -O3 -fPIC -fvisibility=hidden -ffp-contract=off -fno-math-errno -Wall -Wno-psabi "
    # gcc 12's own headers of intrinsics start from uninitialized registers
    "-Wno-unknown-warning-option -Wno-maybe-uninitialized -Wno-uninitialized"
)

# Features of C++20 that the sources use.
CXX20 = "struct { int a, b; } pair = {.a = 1, .b = __builtin_bit_cast(int, 1.0f)};"

AVX2 = "-mavx2 -mfma -mf16c -mbmi -mbmi2 -mpopcnt"
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512"
AVX512VNNI = f"{AVX512} -mavx512vnni -mavx512vbmi -mavx512vpopcntdq -mgfni"
AVX512BF16 = f"{AVX512VNNI} -mavx512bf16"
INSTRUCTION_SETS = {"scalar": ""}  # in order of preference, the best last
if platform.machine().lower() in ("x86_64", "amd64"):
    INSTRUCTION_SETS = {
        "scalar": "-O2",  # -O3 takes five times as long, for processors of before 2013
        "avx2": AVX2,
        "avx2vnni": f"{AVX2} -mavxvnni",
        "avx512": AVX512,
        "avx512vnni": AVX512VNNI,
        "avx512bf16": AVX512BF16,
        "amx": f"{AVX512BF16} -mamx-tile -mamx-int8 -mamx-bf16",
    }
# The sets that differ from the one before in one file alone: they have all other kernels of that one.
ONE_KERNEL = {"avx512bf16": ("avx512vnni", "grad_scores")}


class NinjaBuild(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import ninja
        import pybind11

        compiler = shlex.split(os.environ.get("CXX", "c++"))
        if not compiles(compiler, [], CXX20):
            raise CompileError(f"{shlex.join(compiler)} is no working C++20 compiler: gcc 11 or clang 14, or later")
        openmp = ["-fopenmp"] if compiles(compiler, ["-fopenmp"], "#include <omp.h>") else []
        sets = {
            name: flags
            for name, flags in INSTRUCTION_SETS.items()
            if compiles(compiler, flags.split(), "#include <immintrin.h>" if flags else "")
        }

        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        # Not setuptools' temporary folder: kept objects are compiled again only after a change, and tests read them.
        folder = ROOT / "build" / f"objects.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"
        folder.mkdir(parents=True, exist_ok=True)
        includes = [sysconfig.get_path("include"), pybind11.get_include()]
        table = CSRC / "cpu/isa_table.cpp"
        kernels = [*sorted((CSRC / "cpu/ops").glob("*.cpp")), table]
        have = " ".join(f"X({name})" for name in sets)

        lines = [
            f"flags = {FLAGS} {shlex.quote(f'-I{CSRC}')} {' '.join(openmp)} {os.environ.get('CXXFLAGS', '')}",
            "rule compile",
            f"  command = {shlex.join(compiler)} $flags $extra -MMD -MF $out.d -c $in -o $out",
            "  depfile = $out.d",
            "  deps = gcc",
            "rule link",
            f"  command = {shlex.join(compiler)} $flags -shared $in -o $out",
        ]
        objects = []

        def compile(source: Path, name: str, extra: str) -> None:
            objects.append(f"{name}.o")
            lines.extend((f"build {name}.o: compile {escape(source)}", f"  extra = {extra}"))

        for name, flags in sets.items():
            flags = f"{flags} -DSLT_ISA={name}"
            base, own = ONE_KERNEL.get(name, ("", ""))
            for source in kernels:
                if source == table and base:
                    compile(source, f"{source.stem}.{name}", f"{flags} -DSLT_BASE={base} -DSLT_OWN={own}")
                elif source == table or own in ("", source.stem):
                    compile(source, f"{source.stem}.{name}", flags)
        compile(CSRC / "cpu/dispatch.cpp", "dispatch", f"'-DSLT_HAVE(X)={have}'")
        compile(CSRC / "module.cpp", "module", " ".join(shlex.quote(f"-isystem{i}") for i in includes))
        lines.append(f"build {escape(library)}: link {' '.join(objects)}\n")
        (folder / "build.ninja").write_text("\n".join(lines))
        try:
            subprocess.run([os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(folder)], check=True)
        except subprocess.CalledProcessError as error:
            raise CompileError(str(error)) from error


def compiles(compiler: list[str], flags: list[str], source: str = "") -> bool:
    """Whether the compiler makes a shared library of a small program with those flags."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.cpp").write_text(f"{source}\nint probe() {{ return 0; }}\n")
        command = [*compiler, "-std=c++20", "-fPIC", "-shared", *flags, "probe.cpp", "-o", "probe.so"]
        try:
            return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def escape(path: Path) -> str:
    """A path as ninja writes it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


setup(
    ext_modules=[Extension("slt_kernels._cpu", sources=[], optional=True)],
    cmdclass={"build_ext": NinjaBuild},
)
