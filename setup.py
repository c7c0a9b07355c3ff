"""Builds the C++ extensions and the CUDA kernels with ninja. PyTorch is not needed.

`slt_kernels._cpu`: the CPU backend, every kernel once per instruction set. The files of ``csrc/cpu/ops`` and
``csrc/cpu/isa_table.cpp`` are compiled for each instruction set that the compiler knows, with its flags and its name as
``SLT_ISA``; where a set differs from another in some kernels alone, just those. The products of a set are compiled as
one file, and its other kernels as another. The set is chosen at run time, so no other file may be compiled with those
flags.

`slt_kernels._cuda`: the host side of the CUDA backend. It needs neither CUDA's headers nor its libraries.

``slt_kernels/_cuda_kernels``: a fatbin of each ``csrc/cuda/*.cu``, and ``kernels.json``, which says what they were
built of, or why there are none. They need nvcc 12.8 or later: what ``NVCC`` names, or ``CUDA_HOME/bin/nvcc``, or one in
``PATH``, or ``/usr/local/cuda/bin/nvcc``. Without one, fatbins that are there already are kept if they were built of
the same sources.

Whatever cannot be built, the package installs without it, and ``slt doctor`` says why. ``CXX`` and ``CXXFLAGS`` are
honoured. For development there are three that build faster: ``SLT_ISAS="avx2 avx512vnni"`` builds these instruction
sets only, and scalar, which every processor runs, and ``SLT_ISAS=native`` those that this one runs;
``SLT_CUDA_ARCHITECTURES="80;90a"`` builds the CUDA kernels for these architectures only. ``SLT_O1="scalar avx512"``
compiles the kernels of these instruction sets with -O1, in half of the time: they compute the same. And
``SLT_EMULATE=1`` builds the sets `amx` and `avx2vnni` so that tests run them on a processor with AVX-512's VNNI and
BF16 that has neither: functions take the place of AMX's instructions.
"""

import hashlib
import json
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from itertools import chain
from pathlib import Path
from typing import NamedTuple

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

# The header of intrinsics that the sources use.
INTRINSICS = (
    "#if defined(__x86_64__)\n#include <immintrin.h>\n#elif defined(__aarch64__)\n#include <arm_neon.h>\n#endif"
)

# Features of C++20 that the sources use.
CXX20 = "struct { int a, b; } pair = {.a = 1, .b = __builtin_bit_cast(int, 1.0f)};"

AVX2 = "-mavx2 -mfma -mf16c -mbmi -mbmi2 -mpopcnt"
AVX512 = f"{AVX2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mprefer-vector-width=512"
AVX512VNNI = f"{AVX512} -mavx512vnni -mavx512vbmi -mavx512vpopcntdq -mgfni"
AVX512BF16 = f"{AVX512VNNI} -mavx512bf16"
X86_SETS = {  # in order of preference, the best last
    "scalar": "-O2",  # -O3 takes five times as long, for processors of before 2013
    "avx2": AVX2,
    "avx2vnni": f"{AVX2} -mavxvnni",
    "avx512": AVX512,
    "avx512vnni": AVX512VNNI,
    "avx512bf16": AVX512BF16,
    "amx": f"{AVX512BF16} -mamx-tile -mamx-int8 -mamx-bf16",
}
EMULATED = {  # for tests on a processor that has the sets before them alone
    "avx2vnni": f"{AVX2} -DSLT_EMULATE -D__AVXVNNI__",
    "amx": f"{AVX512BF16} -DSLT_EMULATE -DSLT_AMX -include {shlex.quote(str(CSRC / 'cpu/test/emulated_amx.h'))}",
}
if os.environ.get("SLT_EMULATE") == "1":
    X86_SETS |= EMULATED
ARM_SETS = {
    "neon": "",
    "neondot": "-march=armv8.2-a+dotprod",
    "neoni8mm": "-march=armv8.2-a+dotprod+i8mm",
}
SETS = {"x86_64": X86_SETS, "amd64": X86_SETS, "aarch64": ARM_SETS, "arm64": ARM_SETS}
INSTRUCTION_SETS = SETS.get(platform.machine().lower(), {"scalar": ""})
# The sets that differ from another in some files of csrc/cpu/ops alone: they have all other kernels of that one.
PRODUCTS = ("conv2d_forward", "conv2d_grad_input", "linear_forward", "linear_grad_input")
OWN_KERNELS = {
    "avx2vnni": ("avx2", PRODUCTS),
    "avx512bf16": ("avx512vnni", ("grad_scores",)),
    "amx": ("avx512vnni", (*PRODUCTS, "grad_scores", "materialize")),
    "neondot": ("neon", (*PRODUCTS, "materialize")),
    "neoni8mm": ("neon", (*PRODUCTS, "materialize")),
}


# Cubins, and at last PTX for later devices. Sums are in the contract's order: no contraction to fused multiply-adds.
CUDA_ARCHITECTURES = ("80", "90a", "100", "120", "80+PTX")
CUDA_ONLY = {"forward_small_bits": ("80", "90a")}  # of a file that no later device uses: they do not multiply bits
NVCC_FLAGS = "-std=c++20 -fmad=false --compress-mode=size"
USUAL_NVCC = "/usr/local/cuda/bin/nvcc"
OLDEST_NVCC = (12, 8)  # the first with sm_100, sm_120 and --compress-mode


class NinjaBuild(build_ext):
    def run(self) -> None:
        super().run()
        package = ROOT if self.inplace else Path(self.build_lib)
        build_kernels(package / "slt_kernels" / "_cuda_kernels", self.objects / "cuda")

    @property
    def objects(self) -> Path:
        # Not setuptools' temporary folder: kept objects are compiled again only after a change, and tests read them.
        return ROOT / "build" / f"objects.{sysconfig.get_platform()}-{sys.implementation.cache_tag}"

    def build_extension(self, ext: Extension) -> None:
        import pybind11

        compiler = shlex.split(os.environ.get("CXX", "c++"))
        if not compiles(compiler, [], CXX20):
            raise CompileError(f"{shlex.join(compiler)} is no working C++20 compiler: gcc 11 or clang 14, or later")
        library = Path(self.get_ext_fullpath(ext.name)).resolve()
        library.parent.mkdir(parents=True, exist_ok=True)
        # By one name in every build: ninja compiles a file again if its command has changed, and pip's own pybind11 is
        # in a temporary folder.
        headers = self.objects / "pybind11"
        headers.parent.mkdir(parents=True, exist_ok=True)
        headers.unlink(missing_ok=True)
        headers.symlink_to(pybind11.get_include())
        includes = [sysconfig.get_path("include"), str(headers)]
        python = " ".join(shlex.quote(f"-isystem{i}") for i in includes)
        if ext.name == "slt_kernels._cpu":
            build_cpu(compiler, library, python, self.objects)
        else:
            build_cuda(compiler, library, python, self.objects / "cuda_module")


def build_cpu(compiler: list[str], library: Path, python: str, folder: Path) -> None:
    openmp = ["-fopenmp"] if compiles(compiler, ["-fopenmp"], "#include <omp.h>") else []
    chosen = chosen_sets(compiler)
    sets = {name: flags for name, flags in chosen.items() if compiles(compiler, flags.split(), INTRINSICS)}
    quickly = listed("SLT_O1")
    all_sets = {name: f"{flags} -O1" if name in quickly else flags for name, flags in INSTRUCTION_SETS.items()}
    objects = [*cpu_objects(sets, all_sets), (CSRC / "module.cpp", "module", python)]
    link(compiler, openmp, library, objects, folder)


def cpu_objects(sets: dict[str, str], all_sets: dict[str, str]) -> list[tuple[Path, str, str]]:
    """The objects of the CPU kernels: a source, a name and flags of its own each.

    Args:
        sets: flags of the instruction sets to build, by name.
        all_sets: of the processor; a set may have kernels of another that is not built.
    """
    kernels: dict[str, set[str]] = {name: set() for name in all_sets}  # files to compile, by instruction set
    objects = []
    for name, flags in sets.items():
        base, own = OWN_KERNELS.get(name, (name, ()))
        kernels[name].update(own)
        kernels[base].update(path.stem for path in (CSRC / "cpu/ops").glob("*.cpp") if path.stem not in own)
        flags = f"{flags} -DSLT_ISA={name}"
        if own:
            flags += f" -DSLT_BASE={base} '-DSLT_OWN(X)={' '.join(f'X({operation})' for operation in own)}'"
        objects.append((CSRC / "cpu/isa_table.cpp", f"isa_table.{name}", flags))
    for name, compiled in reversed(kernels.items()):  # those of the best sets take longest, so they start first
        # As two files: the kernels of each share most of their code, and compile in less than half of the time.
        for together, files in (("products", compiled & {*PRODUCTS}), ("others", compiled - {*PRODUCTS})):
            if files:
                *before, last = sorted(files)
                flags = f"{all_sets[name]} -DSLT_ISA={name}"
                flags += "".join(f" -include cpu/ops/{kernel}.cpp" for kernel in before)
                objects.append((CSRC / f"cpu/ops/{last}.cpp", f"{together}.{name}", flags))
    have = " ".join(f"X({name})" for name in sets)
    emulate = " -DSLT_EMULATE" if any(sets.get(name) == flags for name, flags in EMULATED.items()) else ""
    objects.append((CSRC / "cpu/dispatch.cpp", "dispatch", f"'-DSLT_HAVE(X)={have}'{emulate}"))
    return objects


def chosen_sets(compiler: list[str]) -> dict[str, str]:
    """Flags of the instruction sets to build: those that SLT_ISAS names, by default all, and the first one in any case.

    Raises:
        ValueError: SLT_ISAS names another.
    """
    chosen = listed("SLT_ISAS") or [*INSTRUCTION_SETS]
    if chosen == ["native"]:
        native = macros(compiler, "-march=native") | macros(compiler)
        known = {name: flags for name, flags in INSTRUCTION_SETS.items() if compiles(compiler, flags.split())}
        chosen = [name for name, flags in known.items() if macros(compiler, flags) <= native]
    if unknown := [name for name in chosen if name not in INSTRUCTION_SETS]:
        raise ValueError(
            f"SLT_ISAS names {', '.join(unknown)}: expected native, or some of {', '.join(INSTRUCTION_SETS)}"
        )
    first = next(iter(INSTRUCTION_SETS))
    return {name: flags for name, flags in INSTRUCTION_SETS.items() if name in chosen or name == first}


def macros(compiler: list[str], flags: str = "") -> set[str]:
    """What the compiler defines with those flags: __AVX2__ with -mavx2, for example.

    Raises:
        CompileError: it does not know them.
    """
    command = [*compiler, *flags.split(), "-dM", "-E", "-x", "c++", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise CompileError(f"{shlex.join(command)} failed: {done.stderr}")
    return set(re.findall(r"^#define (\w+)", done.stdout, re.MULTILINE))


def build_cuda(compiler: list[str], library: Path, python: str, folder: Path) -> None:
    source = f"'-DSLT_CUDA_SOURCE=\"{cuda_source()}\"'"
    sources = [CSRC / "cuda_module.cpp", *sorted((CSRC / "cuda").glob("*.cpp"))]
    objects = [(path, path.stem, f"{python} {source if path.stem == 'driver' else ''}") for path in sources]
    link(compiler, [], library, objects, folder, "-shared -ldl")


def link(
    compiler: list[str],
    flags: list[str],
    product: Path,
    objects: list[tuple[Path, str, str]],
    folder: Path,
    link_flags: str = "-shared",
) -> None:
    """Makes a library or a program of objects: a source, a name and flags of its own each."""
    lines = [
        f"flags = {FLAGS} {shlex.quote(f'-I{CSRC}')} {' '.join(flags)} {os.environ.get('CXXFLAGS', '')}",
        "rule compile",
        f"  command = {shlex.join(compiler)} $flags $extra -MMD -MF $out.d -c $in -o $out",
        "  depfile = $out.d",
        "  deps = gcc",
        "rule link",
        f"  command = {shlex.join(compiler)} $flags $in {link_flags} -o $out",
    ]
    for source, name, extra in objects:
        lines.extend((f"build {name}.o: compile {escape(source)}", f"  extra = {extra}"))
    lines.append(f"build {escape(product)}: link {' '.join(f'{name}.o' for _, name, _ in objects)}\n")
    try:
        run_ninja(lines, folder)
    except subprocess.CalledProcessError as error:
        raise CompileError(str(error)) from error


def run_ninja(lines: list[str], folder: Path, **options: object) -> subprocess.CompletedProcess:
    import ninja

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "build.ninja").write_text("\n".join(lines))
    return subprocess.run([os.path.join(ninja.BIN_DIR, "ninja"), "-C", str(folder)], check=True, **options)


# CUDA


def cuda_source() -> str:
    """Names what kernels and their argument structs are built of."""
    digest = hashlib.sha256()
    for path in sorted((*(CSRC / "contract").glob("*.h"), *(CSRC / "cuda").glob("*.h"), *(CSRC / "cuda").glob("*.cu"))):
        digest.update(f"{path.relative_to(CSRC).as_posix()} {path.stat().st_size}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


class Nvcc(NamedTuple):
    path: str
    version: str  # 13.0.88


def find_nvcc() -> Nvcc:
    """The first nvcc that is new enough.

    Raises:
        LookupError: there is none; the message is a sentence about the last one, or that none was found.
    """
    places = [
        os.environ.get("NVCC"),
        os.path.join(os.environ["CUDA_HOME"], "bin", "nvcc") if os.environ.get("CUDA_HOME") else None,
        shutil.which("nvcc"),
        USUAL_NVCC,
    ]
    oldest = ".".join(map(str, OLDEST_NVCC))
    reason = f"there was no nvcc when the package was built: nvcc {oldest} or later builds them"
    for place in filter(None, places):
        try:
            done = subprocess.run([place, "--version"], capture_output=True, text=True, check=False)
        except OSError:
            continue
        version = re.search(r"\bV(\d+)\.(\d+)\.\d+", done.stdout)
        if version is None:
            reason = f"{place} did not say its version when the package was built"
        elif tuple(map(int, version.groups())) < OLDEST_NVCC:
            reason = f"nvcc {version[0][1:]} was too old when the package was built: expected {oldest} or later"
        else:
            return Nvcc(place, version[0][1:])
    raise LookupError(reason)


def cuda_architectures() -> list[str]:
    return listed("SLT_CUDA_ARCHITECTURES") or [*CUDA_ARCHITECTURES]


def code_of(architecture: str) -> str:
    """nvcc's option for an architecture: "90a", or "80+PTX" for PTX."""
    number = architecture.removesuffix("+PTX")
    return f"-gencode arch=compute_{number},code={'compute' if number != architecture else 'sm'}_{number}"


def build_kernels(folder: Path, work: Path, sources: list[Path] | None = None) -> None:
    """Makes the folder of fatbins. Never raises: what fails is written down there.

    Args:
        folder: of the package that is built.
        work: for objects, which are kept.
        sources: all of csrc/cuda by default.
    """
    source = cuda_source()
    sources = sorted((CSRC / "cuda").glob("*.cu")) if sources is None else sources
    folder.mkdir(parents=True, exist_ok=True)
    try:
        nvcc = find_nvcc()
        fatbins, warnings = compile_kernels(nvcc, sources, cuda_architectures(), work)
        write_kernels(folder, fatbins)
        found = {"source": source, "nvcc": nvcc.version, "architectures": cuda_architectures(), "warnings": warnings}
    except (LookupError, CompileError, OSError) as error:
        kept = ROOT / "slt_kernels" / "_cuda_kernels"
        found = read_kernels(kept)
        if found.get("source") == source and "why_none" not in found:
            print(f"CUDA kernels: kept those of this source, built by nvcc {found['nvcc']} ({error})")
            if folder.resolve() != kept.resolve():
                write_kernels(folder, sorted(kept.glob("*.fatbin")))
        else:
            write_kernels(folder, [])
            found = {"source": source, "why_none": str(error)}
            print(f"CUDA kernels: none, for {error}")
    (folder / "kernels.json").write_text(json.dumps(found, indent=1) + "\n")


def compile_kernels(
    nvcc: Nvcc, sources: list[Path], architectures: list[str], work: Path
) -> tuple[list[Path], list[str]]:
    """Compiles what has changed.

    Returns:
        The fatbins, and the lines of ptxas about products that it has serialized.

    Raises:
        CompileError: nvcc failed; the message has its last lines.
    """
    work = work / nvcc.version
    files = {path: [a for a in architectures if a in CUDA_ONLY.get(path.stem, architectures)] for path in sources}
    files = {path: chosen for path, chosen in files.items() if chosen}
    lines = [
        f"flags = {NVCC_FLAGS} {shlex.quote(f'-I{CSRC}')}",
        f"nvcc = {shlex.quote(nvcc.path)}",
        "compile = $nvcc -fatbin $flags",
        "rule compile",
        "  command = $compile $code -MMD -MF $out.d -MT $out $in -o $out > $out.log 2>&1 || (cat $out.log; exit 1)",
        "  depfile = $out.d",
        "  deps = gcc",
        *chain.from_iterable(
            (f"build {path.stem}.fatbin: compile {escape(path)}", f"  code = {' '.join(map(code_of, chosen))}")
            for path, chosen in files.items()
        ),
        "",
    ]
    try:
        run_ninja(lines, work, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    except subprocess.CalledProcessError as error:
        print(error.output, file=sys.stderr)
        told = [line for line in error.output.splitlines() if "error" in line] or error.output.splitlines()[-1:]
        raise CompileError(
            f"nvcc {nvcc.version} failed when the package was built: {told[0] if told else error}"
        ) from error
    logs = "".join((work / f"{path.stem}.fatbin.log").read_text() for path in files)
    warnings = [line for line in logs.splitlines() if re.search(r"\bC751\d\b", line)]
    return [work / f"{path.stem}.fatbin" for path in files], warnings


def write_kernels(folder: Path, fatbins: list[Path]) -> None:
    """Makes the folder hold these fatbins and no other."""
    for path in folder.glob("*.fatbin"):
        if path.name not in {f.name for f in fatbins}:
            path.unlink()
    for path in fatbins:
        shutil.copyfile(path, folder / path.name)


def read_kernels(folder: Path) -> dict[str, object]:
    try:
        return json.loads((folder / "kernels.json").read_text())
    except (OSError, ValueError):
        return {}


def compiles(compiler: list[str], flags: list[str], source: str = "") -> bool:
    """Whether the compiler makes a shared library of a small program with those flags."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "probe.cpp").write_text(f"{source}\nint probe() {{ return 0; }}\n")
        command = [*compiler, "-std=c++20", "-fPIC", "-shared", *flags, "probe.cpp", "-o", "probe.so"]
        try:
            return subprocess.run(command, cwd=folder, capture_output=True, check=False).returncode == 0
        except OSError:
            return False


def listed(variable: str) -> list[str]:
    """The names in an environment variable, between spaces, commas or semicolons."""
    return [name for name in re.split("[; ,]+", os.environ.get(variable, "")) if name]


def escape(path: Path) -> str:
    """A path as ninja writes it."""
    return str(path).replace("$", "$$").replace(" ", "$ ").replace(":", "$:")


if __name__ == "__main__":
    setup(
        ext_modules=[Extension(f"slt_kernels.{name}", sources=[], optional=True) for name in ("_cpu", "_cuda")],
        cmdclass={"build_ext": NinjaBuild},
    )
