"""What the build left: the extension, the fatbins, and the record of what they were built of."""

import json
import re
from functools import cache
from pathlib import Path
from typing import NamedTuple

try:
    from ... import _cuda
except ImportError as error:
    _there = any(Path(__file__).parents[2].glob("_cuda.*"))
    _cuda = None
    why_no_extension = (
        str(error) if _there else "the extension slt_kernels._cuda is not built: pip install -e . builds it"
    )
else:
    why_no_extension = None

# Major capabilities whose launches need a cubin: they use clusters, for example, which the PTX does not have.
_PLANNED = (8, 9, 10, 12)

FOLDER = Path(__file__).parents[2] / "_cuda_kernels"


class Kernels(NamedTuple):
    """The fatbins.

    Attributes:
        nvcc: the version that built them, such as (13, 0, 88).
        architectures: as in setup.py: "90a" for a cubin, "80+PTX" for PTX.
        size: of all files, in bytes.
    """

    nvcc: tuple[int, ...]
    architectures: tuple[str, ...]
    size: int

    def __str__(self) -> str:
        cubins = [f"sm_{a}" for a in self.architectures if not a.endswith("+PTX")]
        ptx = [f"PTX of compute_{a.removesuffix('+PTX')}" for a in self.architectures if a.endswith("+PTX")]
        return f"{', '.join(cubins + ptx)}; {self.size / 1e6:.2f} MB, built by nvcc {_dotted(self.nvcc)}"

    def why_not_on(self, capability: int, driver: int) -> str | None:
        """Why they do not run on a device; None if they do.

        Args:
            capability: 10 major + minor of its compute capability.
            driver: the newest CUDA that the driver knows: 1000 major + 10 minor.
        """
        named = f"compute capability {capability // 10}.{capability % 10}"
        if capability < 80:
            return f"the device has {named}: expected 8.0 or later"
        if any(_runs(a, capability) for a in self.architectures if not a.endswith("+PTX")):
            return None
        # PTX of "90a", unlike that of "90", runs on no later architecture.
        ptx = [int(a.removesuffix("+PTX")) for a in self.architectures if re.fullmatch(r"\d+\+PTX", a)]
        if capability // 10 in _PLANNED or not any(number <= capability for number in ptx):
            return f"the device has {named}: the kernels are built for {', '.join(self.architectures)}"
        # PTX is compiled by the driver, which knows that of its own CUDA and of older ones.
        return _older(driver, self.nvcc[0], self.nvcc[1], f"on {named} ")

    def why_not_with(self, driver: int) -> str | None:
        """Why a driver cannot load them; None if it can.

        Drivers load what later minor versions of CUDA built. CUDA 12's can decompress fatbins from 12.4 on.
        """
        return _older(driver, self.nvcc[0], 4 if self.nvcc[0] == 12 else 0)


def _older(driver: int, major: int, minor: int, where: str = "") -> str | None:
    if driver >= 1000 * major + 10 * minor:
        return None
    given = f"{driver // 1000}.{driver % 1000 // 10}"
    return f"the driver is of CUDA {given}: the kernels {where}need {major}.{minor} or later"


def _runs(cubin: str, capability: int) -> bool:
    """A cubin runs on later minor capabilities too, unless it is for features of one alone ("90a")."""
    if cubin.endswith("a"):
        return int(cubin[:-1]) == capability
    number = int(cubin.removesuffix("f"))  # "100f": for features of a family
    return number // 10 == capability // 10 and number <= capability


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


@cache
def kernels() -> Kernels | str:
    """The fatbins, or why there are none, in a sentence."""
    if _cuda is None:
        return why_no_extension
    try:
        found = json.loads((FOLDER / "kernels.json").read_text())
    except (OSError, ValueError):
        return "the kernels are not built: pip install -e . builds them where there is nvcc"
    if "why_none" in found:
        return f"the kernels are not built: {found['why_none']}"
    if found["source"] != _cuda.source:
        return "the kernels and the extension were built of different sources: pip install -e . builds both"
    version = tuple(map(int, found["nvcc"].split(".")))
    return Kernels(version, tuple(found["architectures"]), sum(f.stat().st_size for f in FOLDER.glob("*.fatbin")))
