"""Programs of the CPU kernels, without Python: for AArch64, or of the objects that setup.py has left.

Run as a script, it builds the test program (csrc/cpu/test) for this processor and runs it. ``CXX`` and ``CXXFLAGS``
must be those that the objects were built with.
"""

import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Collection
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
TEST = ROOT / "csrc/cpu/test/operations_test.cpp"
# Of the last build alone: an older one may have left others.
OBJECTS = [
    file.parent / name
    for file in sorted(ROOT.glob("build/objects.*/build.ninja"))
    for name in re.findall(r"^build (\S+\.o): compile", file.read_text(), re.MULTILINE)
    if name != "module.o"
]
ARM_COMPILER, EMULATOR = "aarch64-linux-gnu-g++", "qemu-aarch64"


def setup() -> ModuleType:
    """setup.py as a module."""
    spec = importlib.util.spec_from_file_location("build_of_the_cpu_backend", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_here(folder: Path, emulated: Collection[str] = ()) -> Path:
    """The test program for this processor, of the objects of the last build.

    Args:
        folder: for the program.
        emulated: those of setup.py's ``EMULATED`` that it is to have besides. With -Og: their compilation takes longer
            than the program runs.
    """
    build, program, new = setup(), folder / TEST.stem, []
    if emulated:
        all_sets = build.X86_SETS | {name: build.EMULATED[name] for name in emulated}
        built = {path.stem.partition(".")[2] for path in OBJECTS}
        sets = {name: flags for name, flags in all_sets.items() if name in {*built, *emulated}}
        new = [
            (source, name, f"{flags} -Og")
            for source, name, flags in build.cpu_objects(sets, all_sets)
            if name == "dispatch" or name.partition(".")[2] in emulated
        ]
    names = {name for _, name, _ in new}
    kept = shlex.join(str(path) for path in OBJECTS if path.stem not in names)
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    build.link(compiler, ["-fopenmp"], program, [*new, (TEST, TEST.stem, "-O1")], folder, link_flags=kept)
    return program


def no_arm() -> str | None:
    """Why programs for AArch64 cannot be built and run here, or None."""
    missing = [tool for tool in (ARM_COMPILER, EMULATOR) if not shutil.which(tool)]
    return f"no {' and no '.join(missing)} (Debian: g++-aarch64-linux-gnu, qemu-user)" if missing else None


def build_for_arm(
    folder: Path, source: Path = TEST, optimization: str = "-Og", sets: Collection[str] | None = None
) -> Path:
    """A program for AArch64 of one source and the kernels of these instruction sets, by default all."""
    build, program = setup(), folder / source.stem
    chosen = {name: flags for name, flags in build.ARM_SETS.items() if sets is None or name in sets}
    objects = [*build.cpu_objects(chosen, build.ARM_SETS), (source, source.stem, "-O1")]
    build.link([ARM_COMPILER], ["-fopenmp", optimization], program, objects, folder, link_flags="")
    return program


def emulated(core: str, program: Path, *options: object) -> list[object]:
    """The command that runs a program for AArch64 on a core."""
    return [EMULATOR, *options, "-cpu", core, "-L", "/usr/aarch64-linux-gnu", program]


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(subprocess.run([build_here(Path(folder)), *sys.argv[1:]], check=False).returncode)
