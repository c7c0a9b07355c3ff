"""The test program of the CPU kernels, csrc/cpu/test: built for AArch64, or of the objects that setup.py has left.

Run as a script, it builds the program for this processor and runs it. It honours ``CXX`` and ``CXXFLAGS``, which must be
those of the objects.
"""

import importlib.util
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path
from types import ModuleType

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "csrc/cpu/test/operations_test.cpp"
OBJECTS = sorted(path for path in ROOT.glob("build/objects.*/*.o") if path.stem != "module")


def setup() -> ModuleType:
    """setup.py as a module."""
    spec = importlib.util.spec_from_file_location("build_of_the_cpu_backend", ROOT / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_here(folder: Path) -> Path:
    """The program for this processor, of the objects of the last build."""
    program, compiler = folder / "operations_test", shlex.split(os.environ.get("CXX", "c++"))
    flags = [*shlex.split(setup().FLAGS), "-O1", *shlex.split(os.environ.get("CXXFLAGS", ""))]
    subprocess.run([*compiler, *flags, f"-I{ROOT / 'csrc'}", "-fopenmp", SOURCE, *OBJECTS, "-o", program], check=True)
    return program


def build_for_arm(compiler: str, folder: Path) -> Path:
    """The program for AArch64, of all its instruction sets. -O1 compiles faster; CXXFLAGS may name another level."""
    build, program = setup(), folder / "operations_test"
    objects = [*build.cpu_objects(build.ARM_SETS, build.ARM_SETS), (SOURCE, SOURCE.stem, "-O1")]
    build.link([compiler], ["-fopenmp", "-O1"], program, objects, folder, link_flags="")
    return program


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        sys.exit(subprocess.run([build_here(Path(folder)), *sys.argv[1:]], check=False).returncode)
