"""A library in the place of NVIDIA's driver, so that launches are tested, and their cost is measured, without a GPU."""

import ctypes
import os
import shlex
import subprocess
from pathlib import Path
from typing import NamedTuple


def build(folder: Path) -> Path:
    """Compiles the library.

    Raises:
        OSError: there is no compiler.
        subprocess.CalledProcessError: it does not compile.
    """
    library = folder / "libfake_cuda.so"
    compiler = shlex.split(os.environ.get("CXX", "c++"))
    source = Path(__file__).with_suffix(".cpp")
    command = [*compiler, "-std=c++17", "-O2", "-shared", "-fPIC", str(source), "-o", str(library)]
    subprocess.run(command, check=True)
    return library


class Launched(NamedTuple):
    """A launch as the driver got it."""

    kernel: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    shared: int
    stream: int
    device: int  # of the current context
    arguments: bytes
    attributes: dict[int, tuple[int, ...]]


class Driver:
    """The library of this process, which ``SLT_CUDA_DRIVER`` names."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ["SLT_CUDA_DRIVER"])
        self._library.fake_log.restype = ctypes.c_char_p

    def calls(self, name: str) -> int:
        """How often a function was called."""
        return self._library.fake_calls(name.encode())

    def fail(self, name: str, status: int) -> None:
        """Makes a function fail; 0: no longer."""
        self._library.fake_fail(name.encode(), status)

    def current(self, device: int) -> None:
        """Sets the thread's device, as PyTorch does; -1: none."""
        self._library.fake_current(device)

    def capture(self, on: bool) -> None:
        """Whether streams are being captured."""
        self._library.fake_capture(on)

    def hold(self, on: bool) -> None:
        """Whether launches wait, as if the driver's queue were full. They fail after five seconds."""
        self._library.fake_hold(on)

    def quiet(self) -> None:
        """Ends counting and recording, so that the library costs nothing."""
        self._library.fake_quiet()

    def _lines(self, kind: str) -> list[list[str]]:
        lines = [line.split() for line in self._library.fake_log().decode().splitlines()]
        return [words[1:] for words in lines if words[0] == kind]

    @property
    def launches(self) -> list[Launched]:
        """All launches, in their order."""
        return [_launched(*words) for words in self._lines("launch")]

    @property
    def attributes(self) -> list[tuple[str, ...]]:
        """What was set: kernel, number, value, device."""
        return [tuple(words) for words in self._lines("attribute")]


def _launched(name: str, *words: str) -> Launched:
    grid, block = (tuple(map(int, words[i : i + 3])) for i in (0, 3))
    shared, stream, device = map(int, words[6:9])
    attributes = {int(k): tuple(map(int, v.split(","))) for k, v in (word.split(":") for word in words[10:])}
    return Launched(name, grid, block, shared, stream, device, bytes.fromhex(words[9]), attributes)
