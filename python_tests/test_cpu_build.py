"""Which objects the build of the CPU backend makes, and that it made them; compiles one line only."""

import importlib
import os
import platform
import re
import shlex
from pathlib import Path
from types import ModuleType

import pytest
from cpu_program import OBJECTS, setup

from slt_kernels.backends import cpu

ROOT = Path(__file__).parents[1]
FILES = {path.stem for path in (ROOT / "csrc/cpu/ops").glob("*.cpp")}

pytestmark = pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="other instruction sets")


def test_a_compiler_has_built_both_extensions():
    """The build continues without one that does not compile, and its tests would be skipped."""
    build = setup()
    if not build.compiles(shlex.split(os.environ.get("CXX", "c++")), [], build.CXX20):
        pytest.skip("no C++20 compiler")
    assert cpu.unavailable() is None
    importlib.import_module("slt_kernels._cuda")


@pytest.fixture
def build(monkeypatch) -> ModuleType:
    """setup.py with a compiler that knows all instruction sets."""
    module = setup()
    monkeypatch.delenv("SLT_ISAS", raising=False)
    monkeypatch.setattr(module, "compiles", lambda *_: True)
    return module


def objects(build: ModuleType, monkeypatch) -> dict[str, tuple[str, str]]:
    """The source and the flags of each object, by its name."""
    linked = {}
    monkeypatch.setattr(
        build, "link", lambda *arguments: linked.update((name, (source.stem, f)) for source, name, f in arguments[3])
    )
    build.build_cpu(["c++"], ROOT / "_cpu.so", "", ROOT)
    return linked


def kernels(objects: dict[str, tuple[str, str]], isa: str) -> list[str]:
    """The files of csrc/cpu/ops that are compiled for an instruction set."""
    found = [o for name, o in objects.items() if name in (f"products.{isa}", f"others.{isa}")]
    return [file for source, flags in found for file in (*re.findall(r"-include cpu/ops/(\w+)\.cpp", flags), source)]


def test_all_instruction_sets_are_built_by_default(build, monkeypatch):
    tables = {name for name in objects(build, monkeypatch) if name.startswith("isa_table.")}
    assert tables == {f"isa_table.{name}" for name in build.INSTRUCTION_SETS}


def test_named_instruction_sets_are_built_and_scalar(build, monkeypatch):
    monkeypatch.setenv("SLT_ISAS", "avx512vnni, avx2")
    found = objects(build, monkeypatch)
    assert found["dispatch"][1] == "'-DSLT_HAVE(X)=X(scalar) X(avx2) X(avx512vnni)'"
    assert {name.partition(".")[2] for name in found if "." in name} == {"scalar", "avx2", "avx512vnni"}


def test_named_instruction_sets_are_compiled_in_less_time(build, monkeypatch):
    monkeypatch.setenv("SLT_O1", "avx512 scalar")
    found = objects(build, monkeypatch)
    quick = {name for name, (_, flags) in found.items() if "-O1" in flags}
    assert quick == {f"{kernels}.{isa}" for kernels in ("products", "others") for isa in ("scalar", "avx512")}


def test_native_sets_are_those_that_this_processor_runs(monkeypatch):
    build = setup()
    monkeypatch.setenv("SLT_ISAS", "native")
    native = {*build.chosen_sets(shlex.split(os.environ.get("CXX", "c++")))}
    built = {path.stem.partition(".")[2] for path in OBJECTS}
    runs = {*cpu.instruction_sets()}
    assert native & built <= runs
    assert runs <= native | {*build.EMULATED}


def test_a_set_has_each_kernel_once(build, monkeypatch):
    """Its own or, if the machine code is the same, that of another set, of which only these are built."""
    monkeypatch.setenv("SLT_ISAS", "amx")
    found = objects(build, monkeypatch)
    base, own = build.OWN_KERNELS["amx"]
    assert sorted(kernels(found, "amx")) == sorted(own)
    assert sorted(kernels(found, base)) == sorted(FILES - {*own})


def test_own_kernels_are_files(build):
    assert {name for _, own in build.OWN_KERNELS.values() for name in own} <= FILES


def test_a_wrong_name_is_an_error_that_lists_the_names(build, monkeypatch):
    monkeypatch.setenv("SLT_ISAS", "avx2 avx3")
    with pytest.raises(ValueError, match="SLT_ISAS names avx3: expected native, or some of scalar, avx2, avx2vnni,"):
        objects(build, monkeypatch)
