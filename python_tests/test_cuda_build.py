"""The build of the CUDA kernels: with an nvcc, without one, with one that fails; and what it made here."""

import importlib.util
import json
import os
import re
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[1]
BUILT = ROOT / "slt_kernels" / "_cuda_kernels"
MOST_BYTES = 2_500_000

# Makes an output of a line per compilation, and warns of what the folder's `warning` has.
NVCC = """#!/bin/sh
case "$*" in *--version*) echo "Cuda compilation tools, release VERSION, VVERSION"; exit ;; esac
FAILURE
while [ $# -gt 0 ]; do case $1 in -o) out=$2 ;; -MF) deps=$2 ;; *.cu) in=$1 ;; esac; shift; done
echo "$out: $in" > "$deps"
echo "compiled" >> "$out"
echo "ptxas info    : (C7510) Potential Performance Loss: wgmma.mma_async instructions are serialized"
"""


@pytest.fixture
def build(monkeypatch, tmp_path) -> ModuleType:
    """setup.py as a module, of a package in a temporary folder, on a machine without nvcc."""
    spec = importlib.util.spec_from_file_location("build_of_the_package", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "USUAL_NVCC", "/nowhere/nvcc")
    for name in ("NVCC", "CUDA_HOME", "SLT_CUDA_ARCHITECTURES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    monkeypatch.setattr(module.shutil, "which", lambda name: None)
    return module


def nvcc(folder: Path, version: str = "13.0.88", failure: str = "") -> Path:
    path = folder / "nvcc"
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(NVCC.replace("VERSION", version).replace("FAILURE", failure))
    path.chmod(0o755)
    return path


def record(folder: Path) -> dict:
    return json.loads((folder / "kernels.json").read_text())


def test_without_nvcc(build, tmp_path):
    build.build_kernels(tmp_path / "package", tmp_path / "work")
    assert [path.name for path in (tmp_path / "package").iterdir()] == ["kernels.json"]
    assert record(tmp_path / "package")["why_none"].startswith("there was no nvcc when the package was built")


def test_an_old_nvcc_is_passed_over(build, tmp_path, monkeypatch):
    monkeypatch.setenv("NVCC", os.fspath(nvcc(tmp_path / "old", "12.6.20")))
    build.build_kernels(tmp_path / "package", tmp_path / "work")
    reason = "nvcc 12.6.20 was too old when the package was built: expected 12.8 or later"
    assert record(tmp_path / "package")["why_none"] == reason
    monkeypatch.setenv("CUDA_HOME", os.fspath(tmp_path / "new"))
    path = nvcc(tmp_path / "new" / "bin", "12.8.93")
    assert build.find_nvcc() == (os.fspath(path), "12.8.93")


def test_an_nvcc_that_fails_is_written_down(build, tmp_path, monkeypatch):
    failure = 'echo "a.cu(3): error: expected a ;"; exit 2'
    monkeypatch.setenv("NVCC", os.fspath(nvcc(tmp_path / "nvcc", failure=failure)))
    build.build_kernels(tmp_path / "package", tmp_path / "work")
    reason = "nvcc 13.0.88 failed when the package was built: a.cu(3): error: expected a ;"
    assert record(tmp_path / "package")["why_none"] == reason
    assert not list((tmp_path / "package").glob("*.fatbin"))


def test_a_fatbin_of_each_file_and_only_changes_are_compiled(build, tmp_path, monkeypatch):
    monkeypatch.setenv("NVCC", os.fspath(nvcc(tmp_path / "nvcc")))
    files = {path.stem for path in (ROOT / "csrc/cuda").glob("*.cu")}
    package = tmp_path / "package"
    for _ in range(2):
        build.build_kernels(package, tmp_path / "work")
        assert {path.stem for path in package.glob("*.fatbin")} == files
        assert (package / "materialize.fatbin").read_text() == "compiled\n"
        found = record(package)
        assert (found["source"], found["nvcc"]) == (build.cuda_source(), "13.0.88")
        assert found["architectures"] == ["80", "90a", "100", "120", "80+PTX"]
        assert len(found["warnings"]) == len(files)  # of the kept objects too
    monkeypatch.setenv("SLT_CUDA_ARCHITECTURES", "80;90a")
    build.build_kernels(package, tmp_path / "work")
    assert (package / "materialize.fatbin").read_text() == "compiled\ncompiled\n"
    assert record(package)["architectures"] == ["80", "90a"]


@pytest.mark.parametrize("stale", (False, True), ids=("same sources", "other sources"))
@pytest.mark.parametrize("where", ("slt_kernels/_cuda_kernels", "wheel"))
def test_fatbins_that_are_there_are_kept_without_nvcc(build, where, stale, tmp_path, monkeypatch):
    monkeypatch.setenv("NVCC", os.fspath(nvcc(tmp_path / "nvcc")))
    package = tmp_path / "slt_kernels" / "_cuda_kernels"
    build.build_kernels(package, tmp_path / "work")
    monkeypatch.delenv("NVCC")
    if stale:
        monkeypatch.setattr(build, "cuda_source", lambda: "another")
    build.build_kernels(tmp_path / where, tmp_path / "work")
    assert (tmp_path / where / "materialize.fatbin").exists() != stale
    assert ("why_none" in record(tmp_path / where)) == stale


def test_the_package_installs_without_any_compiler(tmp_path):
    environment = os.environ | {
        "CXX": "/nowhere/c++",
        "NVCC": os.fspath(
            nvcc(tmp_path / "nvcc", "99.0.0", failure="exit 2")
        ),  # its objects are in a folder of its own
        "PATH": "/nowhere",
    }
    command = [sys.executable, "setup.py", "build_ext", f"--build-lib={tmp_path}", f"--build-temp={tmp_path}/temp"]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    for objects in ROOT.glob("build/objects.*/cuda/99.0.0"):
        shutil.rmtree(objects)
    assert done.returncode == 0, done.stderr
    kernels = tmp_path / "slt_kernels" / "_cuda_kernels"
    assert "why_none" in record(kernels) or record(kernels) == record(BUILT)
    assert not list(tmp_path.rglob("*.so"))


def test_nvcc_compiles_for_the_named_architectures(build, tmp_path, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setenv("SLT_CUDA_ARCHITECTURES", "80 90a 80+PTX")
    try:
        build.find_nvcc()
    except LookupError as error:
        pytest.skip(str(error))
    build.build_kernels(tmp_path / "package", tmp_path / "work", [ROOT / "csrc/cuda/materialize.cu"])
    assert "why_none" not in record(tmp_path / "package")
    assert code_in(tmp_path / "package" / "materialize.fatbin") == {("cubin", 80), ("cubin", 90), ("PTX", 80)}


# What is built here


@pytest.fixture
def built() -> dict:
    if not (BUILT / "kernels.json").exists():
        pytest.skip("the kernels are not built here")
    why_none = record(BUILT).get("why_none", "")
    assert " failed " not in why_none, why_none  # a file that does not compile is no missing tool
    if why_none:
        pytest.skip(why_none)
    return record(BUILT)


def test_the_fatbins_are_small(built):
    sizes = {path.name: path.stat().st_size for path in BUILT.glob("*.fatbin")}
    large = sum(size for name, size in sizes.items() if name.startswith(("digits", "grad_", "product")))
    assert large <= MOST_BYTES and sum(sizes.values()) - large <= MOST_BYTES, sizes


def test_each_fatbin_holds_its_architectures(built, build):
    for path in BUILT.glob("*.fatbin"):
        chosen = [a for a in built["architectures"] if a in build.CUDA_ONLY.get(path.stem, built["architectures"])]
        expected = {("PTX" if a.endswith("+PTX") else "cubin", int(re.match(r"\d+", a)[0])) for a in chosen}
        assert code_in(path) == expected, path.name


def test_no_product_is_serialized(built):
    """Warnings C7510 to C7519 of ptxas: wgmma that waits where nothing asks for it."""
    assert built["warnings"] == []


def code_in(fatbin: Path) -> set[tuple[str, int]]:
    """Kind and architecture of each entry: a header of 16 bytes, then entries of a header and its bytes each."""
    data, found = fatbin.read_bytes(), set()
    assert data[:4] == bytes.fromhex("50ed55ba")
    at = 16
    while at < len(data):
        kind, _, header, size = struct.unpack_from("<HHIQ", data, at)
        found.add(({1: "PTX", 2: "cubin"}[kind], struct.unpack_from("<I", data, at + 28)[0]))
        at += header + size
    return found
