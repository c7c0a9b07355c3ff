"""No instruction of one path may stand in another: checked in the compiled objects, where a build left them.

The instruction sets that it left out are compiled here, without optimization. So functions are not inlined, and whether
some are shared is only checked where a build has the set.
"""

import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from cpu_program import setup

OBJECTS = sorted(Path(__file__).parent.parent.glob("build/objects.*/*.o"))
KERNELS = [o for o in OBJECTS if o.stem.count(".") == 1]  # <kernels>.<instruction set>.o

pytestmark = [
    pytest.mark.skipif(not OBJECTS, reason="no objects of a build in build/objects.*"),
    pytest.mark.skipif(not (shutil.which("objdump") and shutil.which("nm")), reason="needs binutils"),
]


def run(*command: object) -> str:
    return subprocess.run([str(c) for c in command], capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("path", OBJECTS, ids=lambda p: p.name)
def test_registers(path):
    check_registers(path)


def test_the_other_instruction_sets(tmp_path):
    """Those that this build does not have, as SLT_ISAS says."""
    build, compiler = setup(), shlex.split(os.environ.get("CXX", "c++"))
    sets = {name: flags for name, flags in build.INSTRUCTION_SETS.items() if build.compiles(compiler, flags.split())}
    built = {path.stem for path in OBJECTS}
    new = [
        (source, name, f"{flags} -O0")
        for source, name, flags in build.cpu_objects(sets, build.INSTRUCTION_SETS)
        if name not in built
    ]
    if not new:
        pytest.skip("there is no other")
    build.link(compiler, [], tmp_path / "others.so", new, tmp_path)
    for _, name, _ in new:
        check_registers(tmp_path / f"{name}.o")


def check_registers(path: Path) -> None:
    isa = path.stem.rpartition(".")[2]
    code = run("objdump", "-d", "--no-show-raw-insn", path)
    if "file format elf64-x86-64" not in code:
        pytest.skip("not x86-64")
    if not isa.startswith(("avx512", "amx")):
        assert not re.search(r"%(zmm|k[0-7]\b|[xy]mm(1[6-9]|2\d|3[01]))", code)
    if not isa.startswith(("avx", "amx")):
        assert not re.search(r"%ymm|\tv(p|mov|add|mul|sub)", code)
    if isa not in ("avx512bf16", "amx"):
        assert not re.search(r"\tv(dpbf16|cvtne)", code)
    if isa != "amx":
        assert "%tmm" not in code


@pytest.mark.parametrize("path", KERNELS, ids=lambda p: p.name)
def test_no_shared_functions(path):
    shared = [line for line in run("nm", "--defined-only", path).splitlines() if re.search(r" [WwVvu] ", line)]
    assert not [s for s in shared if "DW.ref" not in s], "the linker may share these between instruction sets"
